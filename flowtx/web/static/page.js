// The demo page: one user's session and notifications, over the stock Phoenix client.

import {Socket} from "./phoenix.mjs"

const MAX_ITEMS = 1000 // in the list; unread ones are kept even beyond
const MAX_JSON = 4000
const LINE = 64
const BACKLOG = 1000 // the most that come with a join
const REFUSALS = 3
const RECONNECT_AFTER = [10, 50, 100, 150, 200, 250, 500, 1000, 2000]
const HEARTBEAT_TIMEOUT = "heartbeat timeout" // what the Phoenix client itself closes with
const SECOND = 1000
const UNITS = [["day", 86_400], ["hour", 3_600], ["minute", 60], ["second", 1]]

const relativeTime = new Intl.RelativeTimeFormat("en", {numeric: "auto"})
const exactTime = new Intl.DateTimeFormat(undefined, {timeStyle: "medium"})
const exactDay = new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "medium"})
const at = id => document.getElementById(id)

function element(name, className, text){
  const made = document.createElement(name)
  if(className){ made.className = className }
  if(text !== undefined){ made.textContent = text }
  return made
}

function relative(milliseconds){
  const seconds = Math.round(milliseconds / SECOND)
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) || UNITS.at(-1)
  return relativeTime.format(Math.trunc(seconds / size), unit)
}

// ISO 8601 with microseconds, or anything else a server may send.
function instant(text){
  const date = new Date(text)
  return Number.isNaN(date.getTime()) ? null : date
}

// What a token says of itself; the server alone can tell whether it is true.
function claims(token){
  try {
    const body = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")
    const bytes = Uint8Array.from(atob(body), character => character.charCodeAt(0))
    const found = JSON.parse(new TextDecoder().decode(bytes))
    return typeof found.sub === "string" ? found : null
  } catch {
    return null
  }
}

// A button that is really disabled would lose the focus, and a keyboard its place.
function allow(button, allowed){ button.setAttribute("aria-disabled", String(!allowed)) }

function onAllowedClick(button, handle){
  button.addEventListener("click", () => { if(button.getAttribute("aria-disabled") !== "true"){ handle() } })
}

function announce(text){ at("announcer").textContent = text }

// --- the token: from the fragment, else from what this tab was given before a reload ---------------

const credentials = {
  fromText(text){
    const parameters = new URLSearchParams(text)
    const token = parameters.get("token")
    // A link's socket URL without a token must not get the token of this tab.
    return token ? {token, socket: parameters.get("socket") || this.defaultSocket()} : null
  },
  take(){
    const given = this.fromText(location.hash.slice(1))
    if(location.hash){ history.replaceState(null, "", location.pathname + location.search) }
    if(given){ this.store(given) }
    return given || this.stored()
  },
  store({token, socket}){
    try {
      sessionStorage.setItem("flowtx", JSON.stringify({token, socket}))
    } catch { /* it works without, until a reload */ }
  },
  stored(){
    try {
      return JSON.parse(sessionStorage.getItem("flowtx"))
    } catch {
      return null
    }
  },
  forget(){
    try {
      sessionStorage.removeItem("flowtx")
    } catch { /* nothing is stored, then */ }
  },
  defaultSocket(){
    return `${location.protocol === "https:" ? "wss" : "ws"}://${location.hostname}:4000/socket`
  },
}

// --- the notifications: what is known of them, and their list --------------------------------------

class Inbox {
  constructor(markRead){
    this.markRead = markRead
    this.enabled = false
    this.clear()
  }

  clear(){
    this.entries = new Map() // by id: {seq, read, when, row, ...}
    this.lastSeq = null // up to which all has come; null before the first
    this.newest = null // the highest seq that the server told of
    this.hidden = 0 // unread ones that the server left out of the backlog
    at("list").replaceChildren()
    this.refresh()
  }

  get unread(){
    let count = this.hidden
    for(const entry of this.entries.values()){ count += entry.read ? 0 : 1 }
    return count
  }

  reach(seq){
    this.lastSeq = Math.max(this.lastSeq ?? 0, seq)
    this.newest = Math.max(this.newest ?? 0, seq)
  }

  // Take one that came; true where it was not known.
  add(notification, fresh){
    this.reach(notification.seq)
    const read = notification.read_at !== null
    const known = this.entries.get(notification.id)
    if(known){
      this.setRead(known, read)
      this.refresh()
      return false
    }
    const entry = {id: notification.id, seq: notification.seq, read, when: instant(notification.inserted_at)}
    this.build(entry, notification, fresh)
    this.entries.set(entry.id, entry)
    this.insert(entry)
    this.prune()
    this.refresh()
    return true
  }

  build(entry, {type, payload, inserted_at: insertedAt}, fresh){
    const row = entry.row = element("li", "item")
    row.classList.toggle("fresh", fresh)
    row.dataset.seq = entry.seq
    const body = element("div", "item-body")
    const head = element("div", "item-head")
    const badge = element("span", "badge", type)
    badge.dataset.tone = tone(type)
    entry.time = element("time", "when")
    entry.time.dateTime = insertedAt
    head.append(badge, element("span", "seq", `#${entry.seq}`), entry.time)
    body.append(head, ...describe(payload))
    entry.dot = element("span", "dot")
    entry.side = element("div", "item-side")
    row.append(entry.dot, body, entry.side)
    this.tell(entry)
    this.showRead(entry)
  }

  // Newest first; what comes live belongs at the top, so the search begins there.
  insert(entry){
    const list = at("list")
    let next = list.firstElementChild
    while(next && Number(next.dataset.seq) > entry.seq){ next = next.nextElementSibling }
    list.insertBefore(entry.row, next)
  }

  prune(){
    if(this.entries.size <= MAX_ITEMS){ return }
    const oldest = [...this.entries.values()].filter(entry => entry.read).sort((a, b) => a.seq - b.seq)[0]
    if(oldest){
      this.entries.delete(oldest.id)
      oldest.row.remove()
    }
  }

  setRead(entry, read){
    if(entry.read === read){ return }
    entry.read = read
    this.showRead(entry)
  }

  showRead(entry){
    entry.row.classList.toggle("unread", !entry.read)
    entry.dot.replaceChildren(...(entry.read ? [] : [element("span", "unseen", "Unread")]))
    if(entry.read){
      const hadFocus = entry.side.contains(document.activeElement)
      entry.side.replaceChildren(element("span", "done", "Read"))
      entry.button = null
      if(hadFocus){ this.focusAfter(entry.row) }
      return
    }
    const button = entry.button = element("button", "button", "Mark read")
    button.type = "button"
    allow(button, this.enabled)
    button.setAttribute("aria-label", `Mark read: number ${entry.seq}`)
    onAllowedClick(button, () => this.markRead({ids: [entry.id]}, button))
    entry.side.replaceChildren(button)
  }

  focusAfter(row){
    let next = row.nextElementSibling
    while(next && !next.querySelector(".item-side button")){ next = next.nextElementSibling }
    const target = next?.querySelector(".item-side button") || at("list").querySelector(".item-side button")
    ;(target || at("inbox-title")).focus()
  }

  // What this tab or another one has marked.
  read({ids, up_to_seq: upToSeq, all}){
    const named = new Set(ids || [])
    for(const entry of this.entries.values()){
      if(all || named.has(entry.id) || entry.seq <= upToSeq){ this.setRead(entry, true) }
    }
    if(!ids){ this.hidden = 0 }
    this.refresh()
  }

  enable(enabled){
    this.enabled = enabled
    for(const entry of this.entries.values()){
      if(entry.button){ allow(entry.button, enabled) }
    }
    this.refresh()
  }

  refresh(){
    const unread = this.unread
    at("unread").textContent = unread.toLocaleString()
    allow(at("mark-all"), this.enabled && unread > 0)
    at("empty").hidden = this.entries.size > 0
    at("truncated").hidden = this.hidden === 0
    at("truncated").textContent = `${this.hidden.toLocaleString()} older unread ones are not shown.`
    at("last-seq").textContent = this.newest === null ? "–" : this.newest.toLocaleString()
  }

  tell(entry){
    if(entry.when === null){
      entry.time.textContent = entry.time.dateTime
      return
    }
    const now = new Date()
    const today = entry.when.toDateString() === now.toDateString()
    const ago = Math.min(0, entry.when - now) // no clock is quite the server's
    const text = `${ago > -5 * SECOND ? "just now" : relative(ago)} · ${(today ? exactTime : exactDay).format(entry.when)}`
    if(entry.time.textContent !== text){ entry.time.textContent = text }
    entry.time.title = entry.time.dateTime
  }

  tick(){ for(const entry of this.entries.values()){ this.tell(entry) } }
}

// One colour for each family of types: deal.won and deal.lost have the same.
function tone(type){
  let sum = 17
  for(const character of type.split(".")[0]){ sum = (sum * 131 + character.codePointAt(0)) % 1_000_003 }
  return sum % 5
}

function titleOf(payload){
  const title = payload === null || Array.isArray(payload) ? undefined : payload?.title
  return typeof title === "string" && title.trim() ? title : null
}

function describe(payload){
  const title = titleOf(payload)
  if(title === null){ return [json(payload)] }
  const shown = [element("p", "title", title)]
  const others = Object.entries(payload).filter(([name]) => name !== "title")
  if(others.length > 6 || others.some(([, value]) => value !== null && typeof value === "object")){
    shown.push(json(Object.fromEntries(others)))
  } else if(others.length){
    const fields = element("dl", "fields")
    for(const [name, value] of others){
      const field = element("div")
      field.append(element("dt", "", name), element("dd", "", plain(value)))
      fields.append(field)
    }
    shown.push(fields)
  }
  return shown
}

function plain(value){
  return cut(typeof value === "number" ? value.toLocaleString(undefined, {maximumFractionDigits: 20}) : String(value), 500)
}

function json(value){
  const whole = JSON.stringify(value)
  const view = element("pre", "json", whole.length > MAX_JSON ? `${whole.slice(0, MAX_JSON)} …` : compact(value, ""))
  if(whole.length > LINE){
    view.tabIndex = 0 // so that it can be scrolled with keys
    view.setAttribute("role", "group")
    view.setAttribute("aria-label", "Payload")
  }
  return view
}

// JSON in as few lines as can be read: what fits into one line stays there, and what lies deep too.
function compact(value, indent){
  // The only line breaks are those of the layout: within texts they are escaped.
  const line = JSON.stringify(value, null, 1).replace(/\n */g, " ")
  if(value === null || typeof value !== "object" || indent.length + line.length <= LINE || indent.length > 6){
    return line
  }
  const deeper = `${indent}  `
  const list = Array.isArray(value)
  const parts = Object.entries(value)
    .map(([key, one]) => deeper + (list ? "" : `${JSON.stringify(key)}: `) + compact(one, deeper))
  return `${list ? "[" : "{"}\n${parts.join(",\n")}\n${indent}${list ? "]" : "}"}`
}

function cut(text, length){ return text.length > length ? `${text.slice(0, length)} …` : text }

// --- the connection: a stock Phoenix socket and the channel of the user -----------------------------

class Connection {
  constructor({token, socket: url}, inbox){
    this.url = url
    this.inbox = inbox
    this.claims = claims(token)
    this.live = true // false once this connection is given up
    this.joinedOnce = false
    this.opened = false // this attempt's
    this.refusals = 0 // attempts in a row that a server which is up did not let in
    this.joinErrors = 0
    this.jitter = 0
    this.backlogEnd = 0 // what comes up to this seq is not news
    this.awaited = 0 // how many of the unread ones are still to come
    this.check = null // what to compare once the backlog is complete: {unread}
    this.fresh = true // this join asks for all that is unread, not for what follows a seq
    this.socket = new Socket(url, {
      params: () => ({token}),
      reconnectAfterMs: tries => (RECONNECT_AFTER[tries - 1] || 5000) + Math.random() * this.jitter,
    })
    this.socket.onOpen(() => {
      this.opened = true
      this.refusals = 0
    })
    this.socket.onClose(event => this.closed(event))
  }

  start(){
    setState("connecting", "Connecting…")
    this.socket.connect()
    this.open()
  }

  open(){
    const channel = this.channel = this.socket.channel(`user:${this.claims.sub}`, () => ({
      device: "console page",
      ...(this.fresh || this.inbox.lastSeq === null ? {} : {last_seq: this.inbox.lastSeq}),
    }))
    const current = handle => value => { if(this.live && channel === this.channel){ handle(value) } }
    channel.on("notification", current(notification => this.notified(notification)))
    channel.on("notifications_read", current(marks => this.inbox.read(marks)))
    channel.onError(current(() => this.lost()))
    channel.onClose(current(() => this.ended("The server closed this channel", "")))
    channel.join()
      .receive("ok", current(reply => this.joined(reply)))
      .receive("error", current(reply => this.notJoined(reply)))
  }

  stop(){
    this.live = false
    this.inbox.enable(false)
    this.socket.disconnect()
  }

  joined(reply){
    this.joinErrors = 0
    this.jitter = Number(reply.reconnect_jitter_max_ms) || 0
    const resumed = !this.fresh && this.inbox.lastSeq !== null
    this.joinedOnce = true
    showUser(reply, this.url)
    if(resumed && (reply.last_seq < this.inbox.lastSeq || reply.truncated)){
      // Another database than before, or too much to catch up with.
      this.inbox.clear()
      this.reopen()
      return
    }
    this.fresh = false
    this.backlogEnd = reply.last_seq
    this.check = resumed ? {unread: reply.unread} : null
    this.inbox.newest = reply.last_seq
    if(!resumed){
      this.awaited = Math.min(reply.unread, BACKLOG)
      this.inbox.hidden = reply.unread - this.awaited
      this.backlogCame()
    }
    this.inbox.enable(true)
    hideNotice()
    setState("connected", "Connected")
    this.compare()
  }

  // Without last_seq only the unread ones come, and the last one's seq is not the end of the inbox.
  backlogCame(){
    if(this.awaited === 0 && !this.fresh){ this.inbox.reach(this.backlogEnd) }
  }

  // With last_seq the server tells what is new, not what another tab has read meanwhile. Where the
  // count of the unread ones does not agree, all are taken for read and those that are not come again.
  compare(){
    if(this.check === null || (this.inbox.lastSeq ?? 0) < this.backlogEnd){ return }
    const {unread} = this.check
    this.check = null
    if(unread === this.inbox.unread){ return }
    this.inbox.read({all: true})
    if(unread > 0){ this.reopen() }
  }

  reopen(){
    this.fresh = true
    const left = this.channel
    this.channel = null
    left.leave()
    this.open()
  }

  notified(notification){
    const live = notification.seq > this.backlogEnd
    const added = this.inbox.add(notification, live)
    if(!live && this.awaited > 0){
      this.awaited -= 1
      this.backlogCame()
    }
    if(added && live){
      announce(`New: ${notification.type}, ${titleOf(notification.payload) ?? `number ${notification.seq}`}`)
    }
    showTitle()
    this.compare()
  }

  markRead(marks, button){
    allow(button, false)
    const failed = reason => {
      if(!this.live){ return }
      allow(button, this.inbox.enabled)
      showNotice({title: "Not marked as read", text: `The server said: ${reason}. Try once more.`})
    }
    this.channel.push("mark_read", marks)
      .receive("ok", () => {
        if(!this.live){ return }
        this.inbox.read(marks)
        hideNotice()
        showTitle()
      })
      .receive("error", reply => failed(reply?.detail || reply?.reason || "error"))
      .receive("timeout", () => failed("nothing, for 10 seconds"))
  }

  lost(){
    this.inbox.enable(false)
    if(this.joinedOnce){ setState("reconnecting", "Reconnecting…") }
  }

  notJoined(reply){
    this.joinErrors += 1
    this.lost()
    if(this.joinErrors < REFUSALS){ return }
    this.stop()
    setState("refused", "Refused")
    showNotice({
      title: "The server did not let this user in",
      text: `Joining user:${this.claims.sub} was answered with “${reply?.reason || "error"}”.`,
      ways: true,
    })
  }

  closed(event){
    if(!this.live){ return }
    const opened = this.opened
    this.opened = false
    // 1000 with a reason is the server's "stay away"; without one it is the echo of our own.
    if(opened && event.code === 1000 && event.reason && event.reason !== HEARTBEAT_TIMEOUT){
      this.ended("The server ended this connection", event.reason)
      return
    }
    this.lost()
    if(!opened){ this.notOpened() }
  }

  // A browser tells no more than 1006, whether the server refused or is not there: ask it.
  async notOpened(){
    const up = await serverIsUp()
    if(!this.live || this.opened || this.socket.isConnected()){ return }
    if(!up){
      this.refusals = 0
      setState(this.joinedOnce ? "reconnecting" : "connecting", "No server there; trying again…")
      return
    }
    this.refusals += 1
    if(this.refusals >= REFUSALS){ this.refused() }
  }

  refused(){
    this.stop()
    setState("refused", "Refused")
    const over = this.claims.exp * SECOND - Date.now()
    showNotice({
      title: "Refused",
      text: over < 0
        ? `The server did not let this token in: it expired ${relative(over)}.`
        : `The server did not let this token in: it may have expired. Or nothing listens at ${this.url}.`,
      command: `flowtx token ${this.claims.sub}`,
      ways: this.joinedOnce,
    })
    if(!this.joinedOnce){ showGate() }
  }

  ended(title, reason){
    this.stop()
    setState("ended", "Ended")
    const over = this.claims.exp * SECOND < Date.now()
    showNotice({
      title,
      text: over
        ? "The token has expired."
        : `It asked this page to stay away${reason ? ` (${reason.replaceAll("_", " ")})` : ""}.`,
      command: over ? `flowtx token ${this.claims.sub}` : undefined,
      ways: true,
    })
  }
}

async function serverIsUp(){
  try {
    return (await fetch("/health/ready", {cache: "no-store", signal: AbortSignal.timeout(3000)})).ok
  } catch {
    return false
  }
}

// --- the page ----------------------------------------------------------------------------------------

function setState(state, text){
  if(at("state-text").textContent !== text){ at("state-text").textContent = text }
  at("state").dataset.state = state
}

function showUser({user, session_id: sessionId}, url){
  at("user-name").textContent = user.name
  at("user-email").textContent = user.email || ""
  at("user-email").hidden = !user.email
  at("avatar").textContent = initials(user.name || user.id)
  at("session-id").textContent = sessionId
  at("socket-url").textContent = url
  at("curl").textContent = curl(user.id)
  at("gate").hidden = true
  at("session").hidden = false
  page.userName = user.name
  showTitle()
}

function showTitle(){
  const unread = inbox.unread
  document.title = page.userName ? `${unread ? `(${unread}) ` : ""}${page.userName} · flowtx` : "flowtx"
}

function initials(name){
  const words = name.trim().split(/\s+/).filter(Boolean)
  const chosen = words.length > 1 ? [words[0], words.at(-1)] : words
  return chosen.map(word => [...word][0]).join("").toUpperCase() || "?"
}

function curl(userId){
  return [
    `curl -X POST ${location.origin}/api/notifications \\`,
    "  -H \"Authorization: Bearer $(cat .flow/api-key)\" \\",
    "  -H \"Content-Type: application/json\" \\",
    `  -d '{"user_ids": ["${userId}"], "type": "deal.won", "payload": {"title": "Acme signed", "amount": 12000}}'`,
  ].join("\n")
}

function showExpiry(){
  const shown = at("expiry")
  const exp = page.connection?.claims.exp
  if(typeof exp !== "number"){
    shown.textContent = "–"
    return
  }
  const left = exp * SECOND - Date.now()
  const when = new Date(exp * SECOND)
  const today = when.toDateString() === new Date().toDateString()
  const text = `${left > 0 ? relative(left) : `expired ${relative(left)}`} · ${(today ? exactTime : exactDay).format(when)}`
  if(shown.textContent !== text){ shown.textContent = text }
  shown.toggleAttribute("data-soon", left > 0 && left < 300 * SECOND)
  shown.toggleAttribute("data-over", left <= 0)
}

function showNotice({title, text, command, ways}){
  at("notice-title").textContent = title
  at("notice-text").textContent = text
  at("notice-command").hidden = !command
  at("notice-code").textContent = command || ""
  at("notice").querySelector(".notice-actions").hidden = !ways
  at("notice").hidden = false
  at("notice").classList.toggle("narrow", !page.connection?.joinedOnce)
}

function hideNotice(){ at("notice").hidden = true }

function showGate(){
  at("session").hidden = true
  at("gate").hidden = false
  at("gate-socket").value ||= page.connection?.url || credentials.defaultSocket()
  at("gate-token").focus()
}

function gateError(text){
  at("gate-error").textContent = text
  at("gate-error").hidden = !text
  at("gate-token").setAttribute("aria-invalid", String(Boolean(text)))
}

function submitGate(event){
  event.preventDefault()
  const text = at("gate-token").value.trim()
  // The whole link will do as well.
  const given = (text.includes("#") && credentials.fromText(text.slice(text.indexOf("#") + 1))) ||
    {token: text, socket: at("gate-socket").value.trim() || credentials.defaultSocket()}
  connect(given)
}

function problemOf({token, socket}){
  if(!token){ return "Paste a token." }
  if(claims(token) === null){ return "That is not a token: it takes a JWT, three parts of letters and digits with dots between them." }
  try {
    if(["ws:", "wss:"].includes(new URL(socket).protocol)){ return "" }
  } catch { /* the same answer */ }
  return "The socket URL must begin with ws:// or wss://."
}

function connect(given){
  const problem = problemOf(given)
  disconnect()
  gateError(problem)
  if(problem){
    setState("idle", "Not connected")
    showGate()
    return
  }
  credentials.store(given)
  hideNotice()
  at("gate").hidden = true
  at("gate-token").value = ""
  page.connection = new Connection(given, inbox)
  page.connection.start()
  showExpiry()
}

function disconnect(){
  page.connection?.stop()
  page.connection = null
  page.userName = null
  at("session").hidden = true
  inbox.clear()
  showTitle()
}

function otherToken(){
  credentials.forget()
  disconnect()
  hideNotice()
  setState("idle", "Not connected")
  showGate()
}

async function copyCurl(){
  const button = at("copy")
  try {
    await navigator.clipboard.writeText(at("curl").textContent)
    button.textContent = "Copied"
    announce("Copied")
  } catch {
    // Not on a secure origin, or not allowed: what is selected can be copied by hand.
    getSelection().selectAllChildren(at("curl"))
    button.textContent = "Selected"
  }
  setTimeout(() => { button.textContent = "Copy" }, 2 * SECOND)
}

function begin(){
  const given = credentials.take()
  if(given){
    connect(given)
  } else {
    showGate()
  }
}

const page = {connection: null, userName: null}
const inbox = new Inbox((marks, button) => page.connection?.markRead(marks, button))

onAllowedClick(at("mark-all"), () => page.connection?.markRead({up_to_seq: inbox.lastSeq}, at("mark-all")))
at("gate-form").addEventListener("submit", submitGate)
at("notice-retry").addEventListener("click", begin)
at("notice-other").addEventListener("click", otherToken)
at("other-token").addEventListener("click", otherToken)
at("copy").addEventListener("click", copyCurl)
// A new link opened in this tab changes the fragment only.
window.addEventListener("hashchange", () => { if(credentials.fromText(location.hash.slice(1))){ begin() } })
setInterval(showExpiry, SECOND)
setInterval(() => inbox.tick(), 10 * SECOND)
begin()
