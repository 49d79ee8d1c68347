// node stream.js MODEL FOLDER: the scores of a folder's DICOM files, one subject's, and of the subject as a whole.
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { setTimeout as pause } from 'node:timers/promises'
import { connect, explain, isPassing, modelSpec, within, words } from './limner.js'

const ATTEMPTS = 3

/** The messages of a stream: first the model, then the images, under numbers in place of names. */
async function* requests(model, files, unread) {
  yield { header: { model: modelSpec(model) } }
  for (const [number, file] of files.entries()) {
    try {
      yield { images: [{ id: `${number}`, subject: 'subject', dicom: await readFile(file) }] }
    } catch (error) {
      unread.set(file, error.message)
    }
  }
}

/** One attempt: every file's result by its path, what could not be read, and the roll-up of the subject. */
async function stream(limner, model, files) {
  const outcome = { results: new Map(), unread: new Map(), labels: [], subject: undefined }
  const call = limner.predictStream(within(60 + files.length))
  // pipeline sends as fast as the server takes images, and no faster; replies are read meanwhile.
  await pipeline(requests(model, files, outcome.unread), call, async (replies) => {
    for await (const { start, results, end } of replies) {
      if (start) outcome.labels = start.labels
      for (const result of results) outcome.results.set(files[Number(result.id)], result)
      if (end) [outcome.subject] = end.subjects
    }
  })
  return outcome
}

/** Scoring changes nothing on the server: a stream that failed for a passing reason is sent again as a whole. */
async function streamPatiently(limner, model, files) {
  for (let attempt = 1; ; attempt++) {
    try {
      const outcome = await stream(limner, model, files)
      const refused = [...outcome.results.values()].some(({ status }) => isPassing(status ?? {}))
      if (!refused || attempt === ATTEMPTS) return outcome
    } catch (error) {
      if (!isPassing(error) || attempt === ATTEMPTS) throw error
    }
    await pause(1000 * 2 ** attempt)
  }
}

const [model, folder] = words('MODEL FOLDER')
const limner = connect()
try {
  const files = (await readdir(folder)).sort().map((name) => join(folder, name))
  const { results, unread, labels, subject } = await streamPatiently(limner, model, files)
  for (const [file, { status, prediction }] of results) {
    if (prediction) console.log(file, prediction.label, ...prediction.probabilities.map((each) => each.toFixed(4)))
    else console.error(`${file} failed: ${status.message}`)
  }
  for (const [file, reason] of unread) console.error(`${file} not sent: ${reason}`)
  if (subject?.prediction) console.log('subject', subject.prediction.label, `of ${subject.images} slices`, labels)
  if (unread.size || subject?.failed) process.exitCode = 1
} catch (error) {
  console.error(explain(error))
  process.exitCode = 1
} finally {
  limner.close()
}
