// node models.js: the models of a server and what they are for.
import { connect, explain, within } from './limner.js'

const limner = connect()
try {
  const { models } = await limner.listModels({}, within(10))
  for (const { identity, state, labels, grid, error } of models) {
    const { name, version, digest } = identity
    console.log(`${name}:${version}`, state, labels.join(' | '), `${grid?.fovMm} mm`, digest, error)
  }
} catch (error) {
  console.error(explain(error))
  process.exitCode = 1
} finally {
  limner.close()
}
