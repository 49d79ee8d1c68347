// node pixels.js MODEL FILE ROWS COLUMNS SPACING: the score of decoded pixels, so that no header leaves this machine.
// FILE holds float32, little-endian, row by row: values after RescaleSlope and RescaleIntercept, MONOCHROME1 inverted.
import { readFile } from 'node:fs/promises'
import { connect, explain, modelSpec, within, words } from './limner.js'

const [model, file, rows, columns, spacing] = words('MODEL FILE ROWS COLUMNS SPACING')
const limner = connect()
try {
  const pixels = {
    data: await readFile(file),
    dataType: 'DATA_TYPE_FLOAT32',
    rows: Number(rows),
    columns: Number(columns),
    geometry: { rowSpacingMm: Number(spacing), columnSpacingMm: Number(spacing) },
  }
  const reply = await limner.predict({ model: modelSpec(model), images: [{ id: '1', pixels }] }, within(30))
  const [{ status, prediction }] = reply.results
  console.log(prediction ? `${prediction.label} ${prediction.probabilities}` : status.message)
  process.exitCode = prediction ? 0 : 1
} catch (error) {
  console.error(explain(error))
  process.exitCode = 1
} finally {
  limner.close()
}
