// The connection to a Limner server, and what its errors say. Research software, not for diagnostic use.
import { readFileSync } from 'node:fs'
import { basename } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'

const PROTOS = fileURLToPath(new URL('../../protos', import.meta.url))
const MESSAGE_BYTES = 256 * 1024 * 1024

const contract = protoLoader.loadSync(
  ['limner/v1/inference.proto', 'limner/v1/model.proto', 'google/rpc/error_details.proto'],
  { includeDirs: [PROTOS], enums: String, longs: Number, defaults: true, oneofs: true },
)
const { InferenceService, ModelService } = grpc.loadPackageDefinition(contract).limner.v1

// A full queue says in a trailer how long to wait; the retry policy heeds it.
const retryPolicy = {
  maxAttempts: 4,
  initialBackoff: '0.2s',
  maxBackoff: '2s',
  backoffMultiplier: 2,
  retryableStatusCodes: ['UNAVAILABLE', 'RESOURCE_EXHAUSTED'],
}
const options = {
  'grpc.max_send_message_length': MESSAGE_BYTES,
  'grpc.max_receive_message_length': MESSAGE_BYTES,
  'grpc.keepalive_time_ms': 30_000,
  'grpc.service_config': JSON.stringify({
    methodConfig: [{ name: [{ service: 'limner.v1.InferenceService', method: 'Predict' }], retryPolicy }],
  }),
}

/** Opens what is used of a server: LIMNER_SERVER, by TLS where LIMNER_TLS_CA names the authorities to trust. */
export function connect({ LIMNER_SERVER: address = 'localhost:8500', LIMNER_TLS_CA: ca } = process.env) {
  const credentials = ca ? grpc.credentials.createSsl(readFileSync(ca)) : grpc.credentials.createInsecure()
  const models = new ModelService(address, credentials, options)
  const inference = new InferenceService(address, credentials, options)
  return {
    listModels: promisify(models.listModels.bind(models)),
    predict: promisify(inference.predict.bind(inference)),
    predictStream: inference.predictStream.bind(inference),
    close() {
      models.close()
      inference.close()
    },
  }
}

/** The call option that ends a call after so many seconds. */
export function within(seconds) {
  return { deadline: Date.now() + 1000 * seconds }
}

/** "cervix", "cervix:3" or "cervix:production", as the contract has it. */
export function modelSpec(text) {
  const [name, version = ''] = text.split(':')
  return { name, version }
}

/** What a google.rpc.Status, of a call or of one image, says of single fields: "field: what it is and should be". */
export function violations(status) {
  return status.details
    .filter((detail) => detail.type_url.endsWith('/google.rpc.BadRequest'))
    .flatMap((detail) => contract['google.rpc.BadRequest'].deserialize(detail.value).fieldViolations)
    .map(({ field, description }) => `${field}: ${description}`)
}

/** One line: of a call that failed its status, the fields that were wrong, and what finds it in the server's log. */
export function explain(error) {
  if (!(error.metadata instanceof grpc.Metadata)) return `${error}`
  const [packed] = error.metadata.get('grpc-status-details-bin')
  const [request = 'none, the call reached no server'] = error.metadata.get('limner-request-id')
  const fields = packed ? violations(contract['google.rpc.Status'].deserialize(packed)) : []
  return [`${grpc.status[error.code]}: ${error.details}`, ...fields, `request: ${request}`].join('; ')
}

/** Whether a call that failed may simply be made again. INTERNAL without a request id: a proxy lost its server. */
export function isPassing({ code, metadata }) {
  if (code === grpc.status.INTERNAL) return metadata?.get('limner-request-id').length === 0
  return code === grpc.status.UNAVAILABLE || code === grpc.status.RESOURCE_EXHAUSTED
}

/** The words of the command line; ends the program where one of those that `usage` names is missing. */
export function words(usage) {
  const given = process.argv.slice(2)
  if (given.length === usage.split(' ').length) return given
  console.error(`usage: node ${basename(process.argv[1])} ${usage}`)
  return process.exit(2)
}
