// The console: what a server does, who is there, and what an operator may do about it.

import {Socket} from "./phoenix.mjs"
import {Chart, quantile} from "./charts.js"

const REFUSALS = 3
const RECONNECT_AFTER = [100, 200, 500, 1000, 2000, 5000]
const SEARCH_AFTER = 250
const SURE_FOR = 4000
const WINDOW = 60 // seconds over which quantiles are taken
const STORED = "flowtx-console"
const FACTS = [
  "Session", "Presence", "Unread", "Last seq", "Last seen", "Since", "Active", "Messages", "Restarts", "Subscribed", "Session id",
]
const UNITS = [["d", 86_400], ["h", 3_600], ["min", 60], ["s", 1]]

const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0})
const fine = new Intl.NumberFormat("en", {maximumFractionDigits: 1})
const clock = new Intl.DateTimeFormat(undefined, {timeStyle: "medium"})
const exact = new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "medium"})
const at = id => document.getElementById(id)

function element(name, className, text){
  const made = document.createElement(name)
  if(className){ made.className = className }
  if(text !== undefined){ made.textContent = text }
  return made
}

function announce(text){ at("announcer").textContent = text }

function put(target, text){ if(target.textContent !== text){ target.textContent = text } }

// --- numbers and times -----------------------------------------------------------------------------

function count(value){ return whole.format(value) }

function rate(value){ return `${value >= 100 ? whole.format(value) : fine.format(value)}/s` }

function bytes(value){
  const units = ["B", "KiB", "MiB", "GiB"]
  let size = value
  let unit = 0
  while(size >= 1024 && unit < units.length - 1){
    size /= 1024
    unit += 1
  }
  return `${unit ? fine.format(size) : whole.format(size)} ${units[unit]}`
}

function duration(seconds){
  if(seconds < 1){ return `${fine.format(seconds * 1000)} ms` }
  return `${fine.format(seconds)} s`
}

// What names a connection or a Session: its beginning is enough to tell it from the others here.
function brief(value){ return /^[0-9a-f]{32}$/.test(value) ? value.slice(0, 8) : value }

function age(date){
  const seconds = Math.max(0, Math.round((Date.now() - date) / 1000))
  if(seconds < 2){ return "now" }
  const [unit, size] = UNITS.find(([, size]) => seconds >= size)
  return `${Math.floor(seconds / size)} ${unit} ago`
}

// A time that tells how long ago it was; `refreshTimes` keeps that true.
function setTime(target, date){
  if(!date || Number.isNaN(date.getTime())){
    put(target, "–")
    target.removeAttribute("datetime")
    return
  }
  target.setAttribute("datetime", date.toISOString())
  target.title = exact.format(date)
  put(target, age(date))
}

function refreshTimes(){
  for(const target of document.querySelectorAll("time[datetime]:not(.exact)")){
    put(target, age(new Date(target.getAttribute("datetime"))))
  }
}

// --- lists that are changed in place, so that the focus and what is selected stay -------------------

function reconcile(container, items, keyOf, make, update){
  const focused = container.contains(document.activeElement) ? document.activeElement : null
  const before = new Map([...container.children].map(child => [child.dataset.key, child]))
  const keys = items.map(keyOf)
  for(const [key, child] of before){ if(!keys.includes(key)){ child.remove() } }
  let next = container.firstElementChild
  items.forEach((item, number) => {
    let child = before.get(keys[number])
    if(!child){
      child = make(item)
      child.dataset.key = keys[number]
    }
    update(child, item)
    if(child === next){
      next = next.nextElementSibling
    } else {
      container.insertBefore(child, next)
    }
  })
  if(focused && focused !== document.activeElement && document.contains(focused)){ focused.focus() }
}

// --- the key ---------------------------------------------------------------------------------------

const keys = {
  current: null,
  stored(){
    try {
      return sessionStorage.getItem(STORED)
    } catch {
      return null
    }
  },
  take(key, keep){
    this.current = key
    try {
      if(keep){ sessionStorage.setItem(STORED, key) } else { sessionStorage.removeItem(STORED) }
    } catch { /* then it is asked for again after a reload */ }
  },
  forget(){ this.take(null, false) },
}

// Plain base64 has a slash, which no subprotocol may have; the server takes the other alphabet, too.
class KeyedWebSocket extends WebSocket {
  constructor(url, protocols){
    super(url, protocols.map(name => name.replace(/\+/g, "-").replace(/\//g, "_")))
  }
}

// --- the connection --------------------------------------------------------------------------------

const link = {
  socket: null,
  commands: null,
  scopes: [],
  refusals: 0,

  open(key){
    this.close()
    const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/console`
    const socket = this.socket = new Socket(url, {
      authToken: key,
      transport: KeyedWebSocket,
      reconnectAfterMs: tries => RECONNECT_AFTER[tries - 1] || RECONNECT_AFTER.at(-1),
    })
    this.refusals = 0
    let opened = false
    socket.onOpen(() => {
      opened = true
      this.refusals = 0
    })
    socket.onClose(event => {
      if(socket !== this.socket){ return }
      if(opened && event.code === 1000){
        refuse(event.reason === "token_revoked" ? "The server does not take this key any more." : "The server has closed the connection.")
        return
      }
      showState("reconnecting", opened ? "Reconnecting…" : "Connecting…")
      if(!opened){ this.failed(socket) }
      opened = false
    })
    showState("connecting", "Connecting…")
    socket.connect()
    this.commands = socket.channel("console:commands")
    this.commands.join().receive("ok", about => this.welcomed(about))
  },

  // A refusal cannot be told from a server that is away, but by asking for something that is open to all.
  // One that is not ready, as it starts or stops, refuses everybody.
  async failed(socket){
    this.refusals += 1
    if(this.refusals < REFUSALS){ return }
    const ready = await fetch("/health/ready", {cache: "no-store"}).then(answer => answer.ok, () => false)
    if(ready && socket === this.socket && this.refusals >= REFUSALS){
      refuse("The server did not take this key; or a proxy in front of it does not pass WebSockets on.")
    }
  },

  welcomed(about){
    this.scopes = about.scopes
    showState("connected", "Connected")
    put(at("where"), `${about.node} · ${about.version} · key ${about.key} (${about.scopes.join(", ")})`)
    at("where").title = `Running since ${exact.format(new Date(about.started_at * 1000))}`
    at("gate").hidden = true
    at("board").hidden = false
    at("forget").hidden = false
    for(const part of document.querySelectorAll("[data-for]")){
      part.hidden = !this.scopes.includes(part.dataset.for)
    }
    board.watch(this.scopes.includes("read"))
  },

  close(){
    const socket = this.socket
    this.socket = this.commands = null
    board.leave()
    if(socket){ socket.disconnect() }
  },

  // What a command came to: its response, or an error whose message is for people.
  ask(event, payload){
    return new Promise((resolve, reject) => {
      if(!this.socket || !this.socket.isConnected()){
        reject(new Error("There is no connection to the server."))
        return
      }
      this.commands.push(event, payload)
        .receive("ok", resolve)
        .receive("error", ({reason, detail}) => reject(new Error(detail || `The server answered: ${reason}`)))
        .receive("timeout", () => reject(new Error("The server did not answer within ten seconds.")))
    })
  },
}

function showState(state, text){
  at("state").dataset.state = state
  put(at("state-text"), text)
}

function refuse(text){
  link.close()
  keys.forget()
  showState("refused", "Not connected")
  askForKey(text)
}

function askForKey(problem){
  at("board").hidden = true
  at("forget").hidden = true
  put(at("where"), "")
  at("gate").hidden = false
  at("gate-error").hidden = !problem
  put(at("gate-error"), problem || "")
  at("gate-key").value = ""
  at("gate-key").focus()
}

// --- the figures -----------------------------------------------------------------------------------

class Figures {
  constructor(){
    this.readings = [] // of the last minute
    this.charts = {
      sessions: new Chart("Sessions", count),
      connections: new Chart("Connections", count),
      online: new Chart("Users online", count),
      messages: new Chart("Messages in", rate),
      frames: new Chart("Frames out", rate),
      pushed: new Chart("Notifications", rate),
      latency: new Chart("Push latency, p99", duration),
      lag: new Chart("Loop lag, p99", duration),
      outbox: new Chart("Queued to send", bytes),
    }
    at("figures").replaceChildren(...Object.values(this.charts).map(chart => chart.element))
  }

  gap(){ this.readings = [] }

  add(now){
    const last = this.readings.at(-1)
    // After a restart of the server its counters begin anew.
    if(last && now.messages < last.messages){ this.gap() }
    const before = this.readings.at(-1)
    const first = this.readings[0]
    const show = (name, value) => this.charts[name].add(now.at, value)
    const perSecond = name => before && now.at > before.at ? (now[name] - before[name]) / (now.at - before.at) : null
    for(const name of ["sessions", "connections", "online", "outbox"]){ show(name, now[name]) }
    for(const name of ["messages", "frames", "pushed"]){ show(name, perSecond(name)) }
    show("latency", quantile(0.99, first?.latency, now.latency))
    show("lag", quantile(0.99, first?.lag, now.lag))
    this.readings.push(now)
    while(this.readings[0].at < now.at - WINDOW){ this.readings.shift() }
    if(at("state").dataset.state === "connected"){ put(at("state-text"), now.ready ? "Connected" : "Connected · the server is not ready") }
    at("state").dataset.ready = String(now.ready)
  }
}

// --- the Sessions ----------------------------------------------------------------------------------

class Sessions {
  constructor(){
    this.rows = new Map()
    this.asked = false
  }

  get query(){
    return {search: at("search").value.trim(), sort: at("sort").value, limit: Number(at("limit").value)}
  }

  show({ids, rows, total, matched, query}){
    for(const row of rows){ this.rows.set(row.user_id, row) }
    for(const id of this.rows.keys()){ if(!ids.includes(id)){ this.rows.delete(id) } }
    const shown = ids.map(id => this.rows.get(id)).filter(Boolean)
    reconcile(at("rows"), shown, row => row.user_id, () => this.make(), (target, row) => this.update(target, row))
    const found = query.search ? `${count(matched)} of ${count(total)} match` : `${count(total)} on this node`
    put(at("count"), shown.length < matched ? `${found}, ${count(shown.length)} shown` : found)
    at("no-rows").hidden = shown.length > 0
    put(at("no-rows"), query.search ? "No Session matches." : "There is no Session.")
    if(this.asked && query.search === this.query.search){
      this.asked = false
      announce(found)
    }
  }

  make(){
    const target = element("tr")
    const user = element("td", "user")
    const open = element("button", "link")
    open.type = "button"
    open.addEventListener("click", () => people.open(target.dataset.key))
    user.append(open, element("span", "name muted"))
    const state = element("td")
    state.append(element("span", "badge"))
    const active = element("td", "when")
    active.append(element("time"))
    const since = element("td", "when")
    since.append(element("time"))
    target.append(user, state, element("td", "devices"), element("td", "number queue"), active, since)
    return target
  }

  update(target, row){
    const [user, state, devices, queue, active, since] = target.children
    put(user.children[0], row.user_id)
    put(user.children[1], row.name === row.user_id ? "" : row.name)
    put(state.firstChild, row.state)
    state.firstChild.dataset.state = row.state
    const more = row.connections - row.devices.length
    put(devices, [...row.devices, ...(more > 0 ? [row.devices.length ? `+${more}` : `${more}`] : [])].join(", ") || "none")
    put(queue, row.queue ? bytes(row.queue) : "–")
    setTime(active.firstChild, new Date(row.active_at * 1000))
    setTime(since.firstChild, new Date(row.connected_at * 1000))
    target.classList.toggle("current", row.user_id === people.current)
  }

  mark(){
    for(const target of at("rows").children){ target.classList.toggle("current", target.dataset.key === people.current) }
  }
}

// --- one user --------------------------------------------------------------------------------------

const people = {
  current: null,
  channel: null,

  open(id){
    if(!id || id === this.current){
      if(id){ at("user-title").focus() }
      return
    }
    this.leave()
    this.current = id
    history.replaceState(null, "", `#user=${encodeURIComponent(id)}`)
    this.clear(id)
    at("user").hidden = false
    at("push-user").value = id
    sessions.mark()
    this.join()
    at("user-title").focus()
    if(matchMedia("(max-width: 64rem)").matches){ at("user").scrollIntoView() }
  },

  join(){
    if(!this.current || !link.socket || !link.scopes.includes("read")){ return }
    const channel = this.channel = link.socket.channel(`console:user:${this.current}`)
    channel.on("user", parts => { if(channel === this.channel){ this.show(parts) } })
    channel.join().receive("error", ({reason, detail}) => {
      channel.leave()
      this.problem(detail || reason)
    })
  },

  leave(){
    if(this.channel){ this.channel.leave() }
    this.channel = null
  },

  close(){
    const id = this.current
    this.leave()
    this.current = null
    at("user").hidden = true
    history.replaceState(null, "", location.pathname)
    sessions.mark()
    const row = [...at("rows").children].find(row => row.dataset.key === id)
    const target = row ? row.querySelector("button") : at("search")
    target.focus()
  },

  clear(id){
    put(at("user-title"), id)
    put(at("user-who"), "")
    this.problem("")
    for(const list of ["user-facts", "connections", "inbox", "ends", "events"]){ at(list).replaceChildren() }
    for(const none of ["no-connections", "no-inbox", "no-ends", "no-events"]){ at(none).hidden = true }
    this.facts = {}
  },

  problem(text){
    at("user-problem").hidden = !text
    put(at("user-problem"), text)
  },

  show({session, inbox, recorder}){
    if(session !== undefined){ this.showSession(session) }
    if(inbox !== undefined){ this.showInbox(inbox) }
    if(recorder !== undefined){ this.showRecorder(recorder) }
    const facts = FACTS.map(name => [name, this.facts[name]]).filter(([, value]) => value !== undefined)
    reconcile(at("user-facts"), facts, ([name]) => name, ([name]) => {
      const made = element("div")
      made.append(element("dt", "", name), element("dd"))
      return made
    }, (target, [, value]) => {
      const place = target.children[1]
      if(value instanceof Date){
        if(!place.firstElementChild){ place.replaceChildren(element("time")) }
        setTime(place.firstElementChild, value)
      } else {
        put(place, value)
      }
    })
  },

  showSession(session){
    Object.assign(this.facts, {
      Session: session ? session.state : "none here",
      Since: session ? new Date(session.connected_at) : undefined,
      Active: session ? new Date(session.last_activity_at) : undefined,
      Messages: session ? count(session.messages_received) : undefined,
      Restarts: session && session.restarts ? count(session.restarts) : undefined,
      Subscribed: session && session.notification_subscriptions.length
        ? session.notification_subscriptions.join(", ") : undefined,
      "Session id": session ? session.session_id : undefined,
    })
    put(at("user-who"), session ? [session.name, session.email].filter(Boolean).join(" · ") : "")
    const connections = session ? session.connections : []
    at("no-connections").hidden = connections.length > 0
    reconcile(at("connections"), connections, one => one.id, one => this.makeConnection(one), (target, one) => {
      put(target.querySelector(".device"), one.device || "unnamed device")
      put(target.querySelector(".agent"), [one.address, one.user_agent].filter(Boolean).join(" · "))
      put(target.querySelector(".cursor"), one.cursor === null ? "–" : count(one.cursor))
      put(target.querySelector(".flight"), count(one.in_flight))
      put(target.querySelector(".queue"), one.reading ? bytes(one.outbox_bytes) : `${bytes(one.outbox_bytes)}, not read`)
      put(target.querySelector(".messages"), count(one.messages_received))
      put(target.querySelector(".topics"), one.topics.join(", ") || "no topic joined")
      setTime(target.querySelector(".opened"), new Date(one.connected_at))
    })
    for(const name of ["disconnect", "stop"]){ at(name).setAttribute("aria-disabled", String(!session)) }
  },

  makeConnection(one){
    const made = element("li", "connection")
    const head = element("div", "row")
    const title = element("p", "title")
    title.append(element("span", "device"), " ", element("span", "mono muted", brief(one.id)), " ", element("time", "opened muted"))
    head.append(title)
    if(link.scopes.includes("admin")){
      const close = element("button", "button small", "Close")
      close.type = "button"
      close.dataset.sure = "Really close?"
      close.setAttribute("aria-label", "Close this connection")
      twice(close, () => command("close_connection", {user_id: this.current, connection_id: one.id},
        ({closed}) => closed ? "The connection is closed." : "That connection has gone already."))
      head.append(close)
    }
    const facts = element("dl", "inline")
    for(const [name, className] of [["cursor", "cursor"], ["on their way", "flight"], ["queue", "queue"], ["messages", "messages"]]){
      const fact = element("div")
      fact.append(element("dt", "", name), element("dd", className))
      facts.append(fact)
    }
    made.append(head, element("p", "agent muted"), facts, element("p", "topics mono"))
    return made
  },

  showInbox(inbox){
    if(inbox.unavailable){
      at("no-inbox").hidden = false
      put(at("no-inbox"), "The database cannot be asked just now.")
      return
    }
    const latest = inbox.entries.length ? inbox.entries[0].seq : 0
    Object.assign(this.facts, {
      Presence: inbox.presence,
      "Last seen": inbox.last_seen === null ? undefined : new Date(inbox.last_seen * 1000),
      Unread: count(inbox.unread),
      "Last seq": count(latest),
    })
    at("no-inbox").hidden = inbox.entries.length > 0
    put(at("no-inbox"), "It is empty.")
    reconcile(at("inbox"), inbox.entries, entry => String(entry.seq), () => {
      const made = element("li", "entry")
      const head = element("p", "row")
      head.append(element("span", "type mono"), element("span", "seq muted"), element("span", "read"), element("time", "muted"))
      made.append(head, element("p", "payload mono"))
      return made
    }, (target, entry) => {
      put(target.querySelector(".type"), entry.type)
      put(target.querySelector(".seq"), `seq ${entry.seq}`)
      put(target.querySelector(".read"), entry.read_at ? "read" : "unread")
      target.classList.toggle("unread", !entry.read_at)
      setTime(target.querySelector("time"), new Date(entry.inserted_at))
      put(target.querySelector(".payload"), entry.payload)
    })
  },

  showRecorder({events, ends}){
    for(const [list, none, entries] of [["ends", "no-ends", ends], ["events", "no-events", events]]){
      at(none).hidden = entries.length > 0
      // The newest first; two that look the same are told apart by a number.
      const seen = new Map()
      const named = entries.map(entry => {
        const text = JSON.stringify(entry)
        seen.set(text, (seen.get(text) || 0) + 1)
        return [`${text}${seen.get(text)}`, entry]
      }).reverse()
      reconcile(at(list), named, ([key]) => key, ([, entry]) => this.makeEvent(entry), () => undefined)
    }
  },

  makeEvent({at: when, event, ...details}){
    const made = element("li", "event")
    const time = element("time", "exact muted")
    const date = new Date(when)
    setTime(time, date)
    put(time, Date.now() - date < 86_400_000 ? clock.format(date) : exact.format(date))
    const words = Object.entries(details).filter(([, value]) => value !== null && value !== "")
      .map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : brief(value)}`)
    made.append(time, element("span", "what", event || "end"), element("span", "details muted", words.join(" · ")))
    return made
  },
}

// --- commands --------------------------------------------------------------------------------------

function command(event, payload, told){
  return link.ask(event, payload).then(
    response => {
      people.problem("")
      announce(told(response))
    },
    problem => people.problem(problem.message),
  )
}

// Has a button do something when it is pressed a second time, soon after the first.
function twice(button, handle){
  const text = button.textContent
  let timer = null
  const calm = () => {
    clearTimeout(timer)
    timer = null
    put(button, text)
    button.classList.remove("sure")
  }
  button.addEventListener("click", () => {
    if(button.getAttribute("aria-disabled") === "true"){ return }
    if(timer === null){
      timer = setTimeout(calm, SURE_FOR)
      put(button, button.dataset.sure)
      button.classList.add("sure")
      announce(button.dataset.sure)
    } else {
      calm()
      handle()
    }
  })
  button.addEventListener("blur", calm)
}

async function push(){
  const result = at("push-result")
  const tell = (kind, text) => {
    result.className = kind
    // The same text twice is told twice.
    result.textContent = ""
    requestAnimationFrame(() => put(result, text))
  }
  const user = at("push-user").value.trim()
  if(!/^[A-Za-z0-9_.:@-]+$/.test(user)){
    tell("error", user ? "No user can have such an id: it takes letters, digits and _ . : @ -" : "Name a user.")
    at("push-user").focus()
    return
  }
  let payload
  try {
    payload = JSON.parse(at("push-payload").value)
  } catch (problem) {
    tell("error", `The payload is not JSON: ${problem.message}`)
    at("push-payload").focus()
    return
  }
  try {
    const {seq} = await link.ask("push_notification", {user_id: user, type: at("push-type").value.trim(), payload})
    tell("good", `It is in the inbox of ${user}, with seq ${seq}.`)
  } catch (problem) {
    tell("error", problem.message)
  }
}

// --- the board -------------------------------------------------------------------------------------

const board = {
  figures: null,
  overview: null,
  list: null,
  timer: null,

  watch(may){
    if(!may || this.overview){ return }
    this.figures = this.figures || new Figures()
    this.overview = link.socket.channel("console:overview")
    this.overview.on("figures", figures => this.figures.add(figures))
    this.overview.onError(() => this.figures.gap())
    this.overview.join()
    const list = this.list = link.socket.channel("console:sessions", () => sessions.query)
    list.on("page", page => sessions.show(page))
    list.join()
    if(people.current){ people.join() } else { openFromAddress() }
    this.timer = setInterval(refreshTimes, 1000)
  },

  leave(){
    clearInterval(this.timer)
    this.overview = this.list = null
    if(this.figures){ this.figures.gap() }
    people.channel = null
  },

  ask(){
    if(!this.list){ return }
    sessions.asked = true
    this.list.push("query", sessions.query)
  },
}

const sessions = new Sessions()

function openFromAddress(){
  const id = new URLSearchParams(location.hash.slice(1)).get("user")
  if(id){ people.open(id) }
}

let searching = null
at("search").addEventListener("input", () => {
  clearTimeout(searching)
  searching = setTimeout(() => board.ask(), SEARCH_AFTER)
})
at("sort").addEventListener("change", () => board.ask())
at("limit").addEventListener("change", () => board.ask())
at("search-form").addEventListener("submit", event => {
  event.preventDefault()
  people.open(at("search").value.trim())
})
at("push-form").addEventListener("submit", event => {
  event.preventDefault()
  push()
})
at("gate-form").addEventListener("submit", event => {
  event.preventDefault()
  const key = at("gate-key").value.trim()
  if(!/^[\x21-\x7e]+$/.test(key)){
    at("gate-error").hidden = false
    put(at("gate-error"), key ? "A key has no spaces, and nothing but ASCII characters." : "Give a key.")
    at("gate-key").focus()
    return
  }
  at("gate-error").hidden = true
  keys.take(key, at("gate-keep").checked)
  link.open(key)
})
at("forget").addEventListener("click", () => {
  link.close()
  keys.forget()
  showState("idle", "Not connected")
  askForKey()
})
at("user-close").addEventListener("click", () => people.close())
twice(at("disconnect"), () => command("disconnect", {user_id: people.current}, () => "The connections are closed; clients come back."))
twice(at("stop"), () => command("stop_session", {user_id: people.current}, ({stopped}) => stopped ? "The Session is stopped." : "There was no Session."))
window.addEventListener("hashchange", openFromAddress)

document.addEventListener("keydown", event => {
  if(event.altKey || event.ctrlKey || event.metaKey || at("board").hidden){ return }
  const typing = event.target.matches("input, textarea, select")
  if(event.key === "/" && !typing && at("search").checkVisibility()){
    event.preventDefault()
    at("search").focus()
    at("search").select()
  } else if(event.key === "Escape" && event.target === at("search") && at("search").value){
    event.preventDefault()
    at("search").value = ""
    board.ask()
  } else if(event.key === "Escape" && people.current && !typing){
    people.close()
  }
})

const stored = keys.stored()
if(stored){
  keys.current = stored
  at("gate-keep").checked = true
  link.open(stored)
} else {
  askForKey()
}
