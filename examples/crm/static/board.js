// The board: presence, deals and notifications, over the stock Phoenix client.

import {Presence, Socket} from "./phoenix.mjs"

const STAGES = ["lead", "proposal", "won", "lost"]
const MAX_NOTIFICATIONS = 100

const at = id => document.getElementById(id)
const amount = new Intl.NumberFormat("en", {style: "currency", currency: "EUR", maximumFractionDigits: 0})

function element(name, text, attributes = {}){
  const made = document.createElement(name)
  if(text !== undefined){ made.textContent = text }
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value))
  return made
}

function announce(text){ at("announcer").textContent = text }

// --- who I am: from the link, kept for a reload, and taken out of the address bar --------------------

function credentials(){
  const given = new URLSearchParams(location.hash.slice(1))
  if(given.get("token")){
    sessionStorage.setItem("crm", location.hash.slice(1))
    history.replaceState(null, "", location.pathname)
  }
  const kept = new URLSearchParams(sessionStorage.getItem("crm") || "")
  return {token: kept.get("token"), socket: kept.get("socket")}
}

const {token, socket: address} = credentials()
if(!token){
  at("state").textContent = "no token: open one of the printed links"
  throw new Error("no token")
}
const me = JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"))).sub

const socket = new Socket(address, {authToken: token})
const user = socket.channel(`user:${me}`, () => (lastSeq === undefined ? {} : {last_seq: lastSeq}))
const everybody = socket.channel("users:online")
const board = socket.channel("deals:board")

function state(name){
  at("state").dataset.state = name
  at("state").textContent = name
}
socket.onOpen(() => state("connected"))
socket.onClose(() => state("reconnecting"))

// --- who is there: online by users:online, at the board by the board's own presence ------------------

const names = new Map()
const nameOf = id => names.get(id) || id
const online = new Presence(everybody)
const looking = new Presence(board)

function showPeople(){
  const here = new Set(looking.list(id => id))
  const people = online.list(id => id).sort().map(id => element("li", nameOf(id), {
    "data-user": id,
    "data-looking": here.has(id),
    title: here.has(id) ? "looks at the board" : "online, not at the board",
  }))
  at("people").replaceChildren(...people)
}
online.onSync(showPeople)
looking.onSync(showPeople)

// --- the deals: whatever the order in which news of a deal comes, its highest version is shown -------

const deals = new Map()
const cards = new Map()

STAGES.forEach(stage => {
  const column = element("section", undefined, {class: "stage", "aria-label": stage})
  column.append(element("h2", stage), element("ul", undefined, {id: `stage-${stage}`}))
  at("board").append(column)
})

function take(deal){
  if((deals.get(deal.id)?.version || 0) >= deal.version){ return false }
  deals.set(deal.id, deal)
  showDeal(deal)
  return true
}

function showDeal(deal){
  const old = cards.get(deal.id)
  // The keyboard's place is where it was, also where the card goes to another column.
  const focused = old?.contains(document.activeElement) ? document.activeElement.dataset.action : null
  const card = element("li", undefined, {class: "deal", "data-deal": deal.id, "data-version": deal.version})
  const actions = element("div")
  const place = STAGES.indexOf(deal.stage)
  const steps = [["back", STAGES[place - 1]], ["on", STAGES[place + 1]]]
  steps.filter(([, stage]) => stage).forEach(([action, stage]) => {
    const sign = action === "on" ? `${stage} →` : `← ${stage}`
    actions.append(button(action, sign, `Move ${deal.title} to ${stage}`, () => move(deal, stage)))
  })
  if(deal.owner !== me){
    actions.append(button("ask", "Ask", `Ask ${nameOf(deal.owner)} about ${deal.title}`, () => ask(deal)))
  }
  card.append(element("h3", deal.title), element("p", `${amount.format(deal.amount)} · ${nameOf(deal.owner)}`), actions)
  old?.remove()
  cards.set(deal.id, card)
  const column = at(`stage-${deal.stage}`)
  const next = [...column.children].find(other => Number(other.dataset.deal) > deal.id)
  column.insertBefore(card, next || null)
  if(focused){ (card.querySelector(`[data-action="${focused}"]`) || card.querySelector("button")).focus() }
}

function button(action, text, label, onclick){
  const made = element("button", text, {type: "button", "data-action": action, "aria-label": label})
  made.addEventListener("click", onclick)
  return made
}

function move(deal, stage){
  board.push("move", {id: deal.id, stage, version: deal.version})
    .receive("ok", ({deal}) => { take(deal); announce(`${deal.title} is in ${deal.stage}`) })
    .receive("error", ({reason, deal}) => {
      if(deal){ take(deal) }
      announce(reason === "moved_meanwhile" ? "Somebody else was faster" : `Not moved: ${reason}`)
    })
    .receive("timeout", () => announce("No answer: the board is read again"))
}

function ask(deal){
  board.push("ask", {id: deal.id})
    .receive("ok", () => announce(`${nameOf(deal.owner)} has been asked`))
    .receive("error", ({reason}) => announce(`Not asked: ${reason}`))
}

board.on("board", ({deals: all, names: known}) => {
  Object.entries(known).forEach(([id, name]) => names.set(id, name))
  at("me").textContent = nameOf(me)
  all.forEach(deal => { if(!take(deal)){ showDeal(deals.get(deal.id)) } })
  showPeople()
  // Those that came before the names.
  for(const item of at("notifications").children){ item.textContent = item.describe() }
})
board.on("deal_moved", ({deal, by}) => {
  if(take(deal)){ announce(`${nameOf(by)} moved ${deal.title} to ${deal.stage}`) }
})

// --- notifications: kept on the server; this page only shows them ------------------------------------

let lastSeq

const TEXTS = {
  "deal.moved": ({title, stage, by}) => `${nameOf(by)} moved ${title} to ${stage}`,
  "deal.asked": ({title, by}) => `${nameOf(by)} asks about ${title}`,
}

function showUnread(count){
  at("unread").textContent = count
  at("read").disabled = count === 0
}

function unreadShown(){ return Number(at("unread").textContent) }

user.on("notification", ({seq, type, payload, read_at}) => {
  const item = element("li", undefined, {"data-seq": seq, "data-read": read_at !== null})
  item.describe = () => (TEXTS[type] || (() => type))(payload)
  item.textContent = item.describe()
  at("notifications").prepend(item)
  while(at("notifications").children.length > MAX_NOTIFICATIONS){ at("notifications").lastChild.remove() }
  lastSeq = seq
  // Those that came with the join are counted in its reply.
  if(seq > counted){
    if(read_at === null){ showUnread(unreadShown() + 1) }
    announce(item.textContent)
  }
})

function markRead(unread){
  at("notifications").querySelectorAll("li").forEach(item => { item.dataset.read = "true" })
  showUnread(unread)
}

user.on("notifications_read", ({unread}) => markRead(unread))
at("read").addEventListener("click", () => {
  user.push("mark_read", {up_to_seq: lastSeq}).receive("ok", ({unread}) => markRead(unread))
})

let counted = 0
user.join().receive("ok", ({unread, last_seq}) => { counted = last_seq; showUnread(unread) })
everybody.join()
board.join()
socket.connect()
