// Clients of npm "phoenix" that read notifications, each a Socket of its own. Commands are lines of JSON on
// stdin, events are lines on stdout; it ends with its standard input.
//
//   {"ports": […], "readers": [{"name", "user", "token"}]}     first: connects them all
//   {"drop": NAME, "forget": N}       cuts a connection; the last N notifications were not taken durably
//
// Events: {"reader", "after"} when a join is sent with that last_seq, {"reader", "joined"} when it was
// answered with ok, {"reader", "seq", "id", "marker"} for a notification.

import { createRequire } from "node:module"
import { createInterface } from "node:readline"

const require = createRequire(new URL("../clients/package.json", import.meta.url))
const { Socket } = require("phoenix")
const WebSocket = require("ws")

const tell = (event) => process.stdout.write(JSON.stringify(event) + "\n")
const soon = () => 20 + 180 * Math.random()
const drops = new Map()

function read({ name, user, token }, number, ports) {
  let turn = number
  let last = 0

  // As behind a load balancer: each connection goes to the next node, whatever the client's URL says.
  class Transport extends WebSocket {
    constructor(url, ...rest) {
      const next = new URL(url)
      next.port = ports[turn++ % ports.length]
      super(next, ...rest)
    }
  }

  const socket = new Socket(`ws://127.0.0.1:${ports[0]}/socket`, {
    transport: Transport,
    params: { token },
    reconnectAfterMs: soon,
    rejoinAfterMs: soon,
  })
  socket.connect()
  const channel = socket.channel(`user:${user}`, () => {
    tell({ reader: name, after: last })
    return { last_seq: last }
  })
  channel.on("notification", ({ seq, id, payload }) => {
    last = Math.max(last, seq)
    tell({ reader: name, seq, id, marker: payload.marker })
  })
  channel.join().receive("ok", () => tell({ reader: name, joined: true }))
  drops.set(name, (forget) => {
    last = Math.max(0, last - forget)
    socket.conn?._socket?.destroy()
  })
}

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const command = JSON.parse(line)
    if (command.readers) command.readers.forEach((reader, number) => read(reader, number, command.ports))
    else drops.get(command.drop)(command.forget)
  })
  .on("close", () => process.exit(0))
