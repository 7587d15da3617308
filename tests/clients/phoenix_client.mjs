// The stock client of npm "phoenix", or another package with its interface that is named on the command line,
// driven by JSON: a command a line on stdin, an event a line on stdout. It ends with its standard input.
//
//   {"do": "connect", "url": "ws://…/socket", "params": {}, "authToken": "…", "options": {}}
//   {"do": "join", "topic": "…", "payload": {}, "resume": true}    resume: gives last_seq when it rejoins
//                 "presence": true                                 the topic has presence
//   {"do": "push", "topic": "…", "event": "…", "payload": {}, "id": 1}
//   {"do": "leave", "topic": "…"}
//   {"do": "ping"}
//   {"do": "send", "text": "…"}                                    a raw frame past the client's own
//   {"do": "drop"}                                                 the TCP connection ends without a word
//   {"do": "disconnect"}
//
// Events: open, close (code, reason), refused (status, body), join and reply (status, response), message
// (topic, event, payload, joinRef, ref), left, pong, disconnected, sent (every frame, as the client wrote it), and of
// its class Presence: presence_join and presence_leave (topic, key, others: how many metas the key has
// besides), presence_sync (topic, state).

import { createInterface } from "node:readline"
import WebSocket from "ws"

const module = await import(process.argv[2] ?? "phoenix")
// One that is written in CommonJS has its names one level down.
const { Presence, Socket } = module.Socket ? module : module.default

const tell = (what, fields = {}) => process.stdout.write(JSON.stringify({ what, ...fields }) + "\n")

class Transport extends WebSocket {
  constructor(...args) {
    super(...args)
    // What a browser does not show to its page.
    this.on("unexpected-response", (request, response) => {
      let body = ""
      response.on("data", (piece) => (body += piece))
      response.on("end", () => {
        tell("refused", { status: response.statusCode, body })
        this.terminate()
      })
    })
  }

  send(data, ...rest) {
    tell("sent", { frame: `${data}` })
    super.send(data, ...rest)
  }
}

const follow = (topic, presence) => {
  const others = (current) => current?.metas.length ?? 0
  presence.onJoin((key, current) => tell("presence_join", { topic, key, others: others(current) }))
  presence.onLeave((key, current) => tell("presence_leave", { topic, key, others: others(current) }))
  presence.onSync(() => tell("presence_sync", { topic, state: presence.state }))
}

let socket
const channels = new Map()

const commands = {
  connect({ url, params = {}, authToken, options = {} }) {
    channels.clear()
    socket = new Socket(url, { transport: Transport, params, authToken, ...options })
    socket.onOpen(() => tell("open", { protocol: socket.conn.protocol }))
    socket.onClose(({ code, reason }) => tell("close", { code, reason }))
    socket.onMessage(({ topic, event, payload, ref, join_ref }) =>
      tell("message", { topic, event, payload, ref: ref ?? null, joinRef: join_ref ?? null }),
    )
    socket.connect()
  },

  join({ topic, payload = {}, resume = false, presence = false }) {
    let lastSeq = null
    // The older client takes no function.
    const resumed = () => (lastSeq !== null ? { ...payload, last_seq: lastSeq } : payload)
    const channel = socket.channel(topic, resume ? resumed : payload)
    channels.set(topic, channel)
    channel.on("notification", (notification) => {
      lastSeq = notification.seq
      tell("notification", { topic, notification })
    })
    if (presence) follow(topic, new Presence(channel))
    const joined = (status) => (response) => tell("join", { topic, status, response })
    const push = channel.join()
    for (const status of ["ok", "error", "timeout"]) push.receive(status, joined(status))
  },

  push({ topic, event, payload = {}, id }) {
    const replied = (status) => (response) => tell("reply", { id, status, response })
    const push = channels.get(topic).push(event, payload)
    for (const status of ["ok", "error", "timeout", "pending"]) push.receive(status, replied(status))
  },

  leave({ topic }) {
    channels.get(topic).leave().receive("ok", () => tell("left", { topic }))
  },

  ping() {
    if (socket.ping) {
      socket.ping(() => tell("pong"))
    } else {
      // The older client has none; what it gets, it tells of in order.
      const ref = socket.makeRef()
      const heard = (message) => message.ref === ref && tell("pong")
      socket.onMessage(heard)
      socket.push({ topic: "phoenix", event: "heartbeat", payload: {}, ref })
    }
  },

  send({ text }) {
    socket.conn.send(text)
  },

  drop() {
    socket.conn._socket.destroy()
  },

  disconnect() {
    socket.disconnect(() => tell("disconnected"))
  },
}

const lines = createInterface({ input: process.stdin })
lines.on("line", (line) => {
  const { do: name, ...options } = JSON.parse(line)
  commands[name](options)
})
lines.on("close", () => process.exit(0))
