// Small charts of the last five minutes, drawn as SVG.

const SVG = "http://www.w3.org/2000/svg"
const WIDTH = 300
const HEIGHT = 56
const TOP = 4

export const SECONDS = 300

function shape(name, className){
  const made = document.createElementNS(SVG, name)
  made.setAttribute("class", className)
  return made
}

// A figure: its name, its value now, and a line of its values. A value that is null leaves a gap.
export class Chart {
  constructor(label, format){
    this.format = format
    this.points = [] // of [seconds, value]
    this.element = document.createElement("figure")
    this.element.className = "figure card"
    const caption = document.createElement("figcaption")
    caption.textContent = label
    this.value = document.createElement("p")
    this.value.className = "value"
    this.most = document.createElement("p")
    this.most.className = "most"
    const drawing = shape("svg", "drawing")
    drawing.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`)
    drawing.setAttribute("preserveAspectRatio", "none")
    drawing.setAttribute("aria-hidden", "true")
    drawing.setAttribute("focusable", "false")
    this.area = shape("path", "area")
    this.line = shape("path", "line")
    drawing.append(this.area, this.line)
    this.element.append(caption, this.value, this.most, drawing)
    this.draw()
  }

  add(at, value){
    this.points.push([at, value])
    while(this.points.length && this.points[0][0] < at - SECONDS){ this.points.shift() }
    this.draw()
  }

  draw(){
    const latest = this.points.at(-1)
    const value = latest ? latest[1] : null
    const values = this.points.map(([, value]) => value).filter(value => value !== null)
    const most = Math.max(0, ...values)
    this.value.textContent = value === null ? "–" : this.format(value)
    this.most.textContent = `max ${values.length ? this.format(most) : "–"}`
    const runs = this.runs(latest ? latest[0] : 0, most)
    this.line.setAttribute("d", runs.map(run => `M${run.map(point => point.join(" ")).join("L")}`).join(""))
    this.area.setAttribute("d", runs.map(run =>
      `M${run[0][0]} ${HEIGHT}L${run.map(point => point.join(" ")).join("L")}L${run.at(-1)[0]} ${HEIGHT}Z`
    ).join(""))
  }

  // The points between gaps, in the coordinates of the drawing.
  runs(now, most){
    const runs = []
    let run = []
    for(const [at, value] of this.points){
      if(value === null){
        if(run.length){ runs.push(run) }
        run = []
      } else {
        const x = WIDTH * (1 - (now - at) / SECONDS)
        const y = HEIGHT - (most ? (HEIGHT - TOP) * value / most : 0)
        run.push([x.toFixed(1), Math.min(y, HEIGHT - 1).toFixed(1)])
      }
    }
    if(run.length){ runs.push(run) }
    return runs
  }
}

// The quantile of what came between two readings of a histogram; null where nothing came.
export function quantile(share, before, after){
  if(!before || !after || before.counts.length !== after.counts.length){ return null }
  const counts = after.counts.map((count, number) => count - before.counts[number])
  const all = counts.reduce((sum, count) => sum + count, 0)
  if(all <= 0 || counts.some(count => count < 0)){ return null }
  let below = 0
  for(let number = 0; number < counts.length; number++){
    if(below + counts[number] >= share * all){
      const from = number ? after.bounds[number - 1] : 0
      const to = after.bounds[number] ?? from
      return from + (to - from) * (share * all - below) / (counts[number] || 1)
    }
    below += counts[number]
  }
  return null
}
