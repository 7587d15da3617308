// The class Presence of npm "phoenix" and nothing else: a JSON array of scripts on stdin, and what
// each ends with on stdout. A script is an array of ["join", ref], ["state", …] and ["diff", …].

import { readFileSync } from "node:fs"
import { Presence } from "../clients/node_modules/phoenix/priv/static/phoenix.mjs"

const play = (script) => {
  const listeners = {}
  let joinRef = null
  const presence = new Presence({
    on: (event, listener) => (listeners[event] = listener),
    joinRef: () => joinRef,
  })
  for (const [what, value] of script) {
    if (what === "join") joinRef = value
    else listeners[`presence_${what}`](value)
  }
  return presence.list((key, { metas }) => [key, { metas }])
}

process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0)).map(play)))
