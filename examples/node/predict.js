// node predict.js MODEL FILE: the score of one DICOM file. The whole file is sent, with all that it says of the patient.
import { readFile } from 'node:fs/promises'
import { connect, explain, modelSpec, violations, within, words } from './limner.js'

const [model, file] = words('MODEL FILE')
const limner = connect()
try {
  const images = [{ id: '1', dicom: await readFile(file) }]
  const reply = await limner.predict({ model: modelSpec(model), images }, within(30))
  const [{ status, prediction }] = reply.results
  if (prediction) {
    const scores = reply.labels.map((label, index) => `${label} ${prediction.probabilities[index].toFixed(4)}`)
    console.log(prediction.label, `(${scores.join(', ')})`, 'by', reply.model.digest)
    if (prediction.distance?.far) console.log('unlike what the model was trained on: do not rely on it')
  } else {
    console.error(`${file} failed: ${violations(status)}`)
    process.exitCode = 1
  }
} catch (error) {
  console.error(explain(error))
  process.exitCode = 1
} finally {
  limner.close()
}
