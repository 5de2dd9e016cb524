// A heatmap on canvas: one byte a cell, exact cell on click. Text from prompts and models reaches the page only through
// fillText and textContent, which know no markup.

const MARGIN = { left: 82, top: 8, right: 6, bottom: 80 };
const FONT = "11px sans-serif";
const TOKEN_ROOM = 11; // pixels a label needs across its line
const NUMBER_ROOM = 34; // pixels a number needs along its line
const MISSING = 255;
const DECADES = 4;

/** Header (JSON) and levels of every panel from one run of bytes: length of the header, header, panels. */
function decode(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  let start = 4 + length;
  for (const panel of header.panels) {
    panel.levels = bytes.subarray(start, start + panel.rows * panel.cols);
    start += panel.rows * panel.cols;
  }
  return header;
}

const hex = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));

/** 256 colours (red, green, blue) from the stops of a scale; the last is the colour of missing values. */
function palette(stops, missing) {
  const colors = [];
  for (let level = 0; level < MISSING; level++) {
    const place = level / (MISSING - 1);
    let next = stops.findIndex(([position]) => position >= place);
    if (next < 0) next = stops.length - 1;
    const [high, above] = stops[next];
    const [low, below] = stops[Math.max(next - 1, 0)];
    const share = high > low ? (place - low) / (high - low) : 0;
    const [from, to] = [hex(below), hex(above)];
    colors.push(from.map((part, index) => Math.round(part + share * (to[index] - part))));
  }
  colors.push(hex(missing));
  return colors;
}

function valueAt(level, { low, high, bend }) {
  let share = level / (MISSING - 1);
  if (bend === "sqrt") share *= share;
  if (bend === "log") share = share > 0 ? 10 ** (-DECADES * (1 - share)) : 0;
  return low + share * (high - low);
}

const written = (value) => String(Number(value.toPrecision(3)));

class Chart {
  constructor(root) {
    this.root = root;
    this.panels = [];
    this.selected = null;
    this.fromPython = undefined;
    this.tip = root.querySelector(".tip");
    root.querySelectorAll("[data-zoom]").forEach((button) => {
      button.onclick = () => this.zoomAll(button.dataset.zoom);
    });
    this.width = 0;
    this.observer = new ResizeObserver(() => {
      if (root.clientWidth !== this.width) this.drawAll();
    });
    this.observer.observe(root);
  }

  dispose() {
    this.observer.disconnect();
    clearTimeout(this.timer);
  }

  show(header) {
    this.header = header;
    const style = getComputedStyle(this.root);
    const probe = document.createElement("canvas").getContext("2d");
    probe.fillStyle = style.getPropertyValue("--st-background-color").trim() || "#ffffff";
    const [red, green, blue] = hex(probe.fillStyle.startsWith("#") ? probe.fillStyle : "#ffffff");
    const look = 0.299 * red + 0.587 * green + 0.114 * blue < 128 ? header.dark : header.light;
    this.colors = palette(look.stops, look.missing);
    this.accent = look.accent;
    this.back = probe.fillStyle;
    this.ink = style.color;
    // Colours as the 32-bit numbers of an ImageData, and how far each level is from the scale's neutral one.
    this.packed = new Uint32Array(this.colors.map(([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0));
    this.strength = Int16Array.from({ length: 256 }, (_, level) =>
      level === MISSING ? -1 : Math.abs(level - header.neutral),
    );
    const sent = JSON.stringify(header.selected);
    if (sent !== this.fromPython) {
      this.fromPython = sent;
      this.selected = header.selected;
    }
    const shared = new Map(); // maps of one shape are looked at together
    while (this.panels.length > header.panels.length) this.panels.pop().box.remove();
    header.panels.forEach((data, index) => {
      const panel = this.panels[index] ?? this.addPanel(index);
      const same = panel.data && panel.data.rows === data.rows && panel.data.cols === data.cols;
      panel.data = data;
      const shape = `${data.rows}x${data.cols}`;
      if (!shared.has(shape)) {
        shared.set(shape, same ? panel.view : { row: 0, col: 0, rows: data.rows, cols: data.cols });
      }
      panel.view = shared.get(shape);
      panel.title.textContent = data.title;
      panel.top.setAttribute("aria-label", `${data.title}: ${data.rows} × ${data.cols} cells. Arrow keys move the selection.`);
    });
    if (this.selected && !this.cellExists(this.selected)) this.selected = null;
    this.drawScale();
    this.drawAll();
  }

  cellExists([index, row, col]) {
    const data = this.header.panels[index];
    return Boolean(data) && row >= 0 && col >= 0 && row < data.rows && col < data.cols;
  }

  addPanel(index) {
    const box = document.createElement("div");
    const title = document.createElement("div");
    title.className = "title";
    const stage = document.createElement("div");
    stage.className = "stage";
    const base = document.createElement("canvas");
    const top = document.createElement("canvas");
    top.className = "top";
    top.tabIndex = 0;
    top.setAttribute("role", "application");
    stage.append(base, top);
    box.append(title, stage);
    this.root.querySelector(".panels").append(box);
    const panel = { index, box, title, stage, base, top };
    this.listen(panel);
    this.panels.push(panel);
    return panel;
  }

  listen(panel) {
    const { top } = panel;
    let drag = null;
    top.onpointerdown = (event) => {
      if (event.button !== 0) return;
      drag = { x: event.offsetX, y: event.offsetY, row: panel.view.row, col: panel.view.col, moved: false };
      top.setPointerCapture(event.pointerId);
    };
    top.onpointermove = (event) => {
      if (drag) {
        const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
        drag.moved ||= Math.hypot(dx, dy) > 4;
        if (drag.moved) {
          panel.view.row = drag.row - (dy / panel.high) * panel.view.rows;
          panel.view.col = drag.col - (dx / panel.wide) * panel.view.cols;
          this.clampView(panel);
          this.drawLike(panel);
        }
      }
      this.hover(panel, event);
    };
    top.onpointerup = (event) => {
      const clicked = drag && !drag.moved;
      drag = null;
      const cell = clicked && this.cellUnder(panel, event);
      if (cell) this.select([panel.index, ...cell], true);
    };
    top.onpointercancel = () => { drag = null; };
    top.onpointerleave = () => { this.tip.hidden = true; };
    top.onwheel = (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      const across = (event.offsetX - MARGIN.left) / panel.wide;
      const down = (event.offsetY - MARGIN.top) / panel.high;
      this.zoom(panel, event.deltaY < 0 ? 0.8 : 1.25, across, down);
      this.drawLike(panel);
    };
    top.onkeydown = (event) => this.key(panel, event);
  }

  key(panel, event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "+" || event.key === "-" || event.key === "Escape") {
      event.preventDefault();
      this.zoomAll({ "+": "in", "-": "out", Escape: "all" }[event.key]);
    }
    if (event.key === "Enter" && this.selected) this.report();
    if (!(event.key in moves)) return;
    event.preventDefault();
    const { rows, cols } = panel.data;
    const here = this.selected && this.selected[0] === panel.index ? this.selected : [panel.index, 0, 0];
    const pace = event.shiftKey ? 10 : 1;
    const row = Math.min(Math.max(here[1] + pace * moves[event.key][0], 0), rows - 1);
    const col = Math.min(Math.max(here[2] + pace * moves[event.key][1], 0), cols - 1);
    const { view } = panel;
    if (row < view.row || row + 1 > view.row + view.rows) view.row = row + 0.5 - view.rows / 2;
    if (col < view.col || col + 1 > view.col + view.cols) view.col = col + 0.5 - view.cols / 2;
    this.clampView(panel);
    this.select([panel.index, row, col], false);
  }

  /** Marks the cell at once; Python hears of it now, or (keys held down) when the moving has stopped. */
  select(cell, now) {
    this.selected = cell;
    const data = this.header.panels[cell[0]];
    this.root.querySelector(".said").textContent = this.describe(data, cell[1], cell[2]).join(", ");
    this.drawAll();
    clearTimeout(this.timer);
    if (now) this.report();
    else this.timer = setTimeout(() => this.report(), 220);
  }

  report() {
    clearTimeout(this.timer);
    this.send(this.selected);
  }

  describe(data, row, col) {
    const { header } = this;
    const level = data.levels[row * data.cols + col];
    const value = level === MISSING ? "no value" : `≈ ${written(valueAt(level, header))}`;
    const token = (list, at) => `${at} “${header.tokens[list][at]}”`;
    return [
      data.title,
      `${header.row_title} ${token(data.row_tokens, row)}`,
      `${header.col_title} ${token(data.col_tokens, col)}`,
      `${header.unit}: ${value}`,
    ];
  }

  cellUnder(panel, event) {
    const { view, data } = panel;
    const across = (event.offsetX - MARGIN.left) / panel.wide;
    const down = (event.offsetY - MARGIN.top) / panel.high;
    if (across < 0 || across >= 1 || down < 0 || down >= 1) return null;
    const row = Math.floor(view.row + down * view.rows);
    const col = Math.floor(view.col + across * view.cols);
    return row >= 0 && col >= 0 && row < data.rows && col < data.cols ? [row, col] : null;
  }

  hover(panel, event) {
    const cell = this.cellUnder(panel, event);
    this.tip.hidden = !cell;
    if (!cell) return;
    this.tip.textContent = this.describe(panel.data, ...cell).join("\n");
    const frame = this.root.getBoundingClientRect();
    const x = event.clientX - frame.left;
    const y = event.clientY - frame.top;
    const left = x + 16 + this.tip.offsetWidth > frame.width ? x - 12 - this.tip.offsetWidth : x + 16;
    this.tip.style.left = `${Math.max(left, 0)}px`;
    this.tip.style.top = `${Math.max(y + 16 + this.tip.offsetHeight > frame.height ? y - 12 - this.tip.offsetHeight : y + 16, 0)}px`;
  }

  zoomAll(how) {
    for (const view of new Set(this.panels.map((panel) => panel.view))) {
      const panel = this.panels.find((one) => one.view === view);
      if (how === "all") Object.assign(view, { row: 0, col: 0, rows: panel.data.rows, cols: panel.data.cols });
      else {
        const here = this.selected && this.selected[0] === panel.index ? this.selected : null;
        const inside = (at, start, count) => (here && at >= start && at < start + count ? (at + 0.5 - start) / count : 0.5);
        this.zoom(
          panel,
          how === "in" ? 0.5 : 2,
          inside(here?.[2], view.col, view.cols),
          inside(here?.[1], view.row, view.rows),
        );
      }
    }
    this.drawAll();
  }

  zoom(panel, factor, across, down) {
    const { view, data } = panel;
    const rows = Math.min(Math.max(view.rows * factor, Math.min(8, data.rows)), data.rows);
    const cols = Math.min(Math.max(view.cols * factor, Math.min(8, data.cols)), data.cols);
    view.row += down * (view.rows - rows);
    view.col += across * (view.cols - cols);
    Object.assign(view, { rows, cols });
    this.clampView(panel);
  }

  clampView({ view, data }) {
    view.row = Math.min(Math.max(view.row, 0), data.rows - view.rows);
    view.col = Math.min(Math.max(view.col, 0), data.cols - view.cols);
  }

  drawLike(panel) {
    this.panels.filter((one) => one.view === panel.view).forEach((one) => this.draw(one));
  }

  drawAll() {
    this.width = this.root.clientWidth;
    if (this.width && this.header) this.panels.forEach((panel) => this.draw(panel));
  }

  drawScale() {
    const { header } = this;
    const canvas = this.root.querySelector(".scale canvas");
    canvas.width = MISSING;
    canvas.height = 1;
    const context = canvas.getContext("2d");
    for (let level = 0; level < MISSING; level++) {
      context.fillStyle = `rgb(${this.colors[level].join(",")})`;
      context.fillRect(level, 0, 1, 1);
    }
    this.root.querySelector(".unit").textContent = header.unit;
    const ticks = [0, 0.5, 1].map((share) => {
      const tick = document.createElement("span");
      tick.textContent = written(valueAt(share * (MISSING - 1), header));
      return tick;
    });
    this.root.querySelector(".ticks").replaceChildren(...ticks);
  }

  draw(panel) {
    const { data, view, stage } = panel;
    panel.wide = Math.max(stage.clientWidth - MARGIN.left - MARGIN.right, 20);
    panel.high = Math.round(Math.min(Math.max((panel.wide * data.rows) / data.cols, 120), 640));
    const height = panel.high + MARGIN.top + MARGIN.bottom;
    if (stage.style.height !== `${height}px`) stage.style.height = `${height}px`;
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [panel.base, panel.top]) {
      const [wide, high] = [Math.round(stage.clientWidth * ratio), Math.round(height * ratio)];
      if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
    }
    const context = panel.base.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, panel.base.width, panel.base.height);
    const image = this.image(data, view, Math.round(panel.wide * ratio), Math.round(panel.high * ratio));
    context.putImageData(image, Math.round(MARGIN.left * ratio), Math.round(MARGIN.top * ratio));
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawAxes(context, panel);
    this.drawSelection(panel, ratio);
    panel.dense = view.cols > panel.wide * ratio || view.rows > panel.high * ratio;
    panel.whole = view.rows >= data.rows && view.cols >= data.cols;
    this.root.querySelector(".hint").textContent =
      (this.panels.some((one) => one.dense) ? "Each pixel shows the strongest of its cells. " : "") +
      (this.panels.every((one) => one.whole)
        ? "Ctrl + wheel zooms, arrow keys move the selection."
        : "Drag to move, All to see the whole map.");
  }

  /** The part of a map in view, `wide` × `high` device pixels. A pixel that covers several cells shows the strongest. */
  image(data, view, wide, high) {
    const image = new ImageData(wide, high);
    const pixels = new Uint32Array(image.data.buffer);
    const { levels, cols: stride } = data;
    const edges = (start, count, size, most) =>
      Int32Array.from({ length: size + 1 }, (_, at) => Math.min(Math.floor(start + (at / size) * count + 1e-9), most));
    const columns = edges(view.col, view.cols, wide, data.cols);
    const lines = edges(view.row, view.rows, high, data.rows);
    const { strength, packed } = this;
    let [drawnFirst, drawnLast] = [-1, -1];
    for (let y = 0; y < high; y++) {
      const firstRow = Math.min(lines[y], data.rows - 1);
      const lastRow = Math.max(lines[y + 1], firstRow + 1);
      if (firstRow === drawnFirst && lastRow === drawnLast) {
        pixels.copyWithin(y * wide, (y - 1) * wide, y * wide); // the same cells as on the line above
        continue;
      }
      [drawnFirst, drawnLast] = [firstRow, lastRow];
      for (let x = 0; x < wide; x++) {
        const firstCol = Math.min(columns[x], data.cols - 1);
        const lastCol = Math.max(columns[x + 1], firstCol + 1);
        let best = levels[firstRow * stride + firstCol];
        for (let row = firstRow; row < lastRow; row++) {
          for (let col = firstCol; col < lastCol; col++) {
            const level = levels[row * stride + col];
            if (strength[level] > strength[best]) best = level;
          }
        }
        pixels[y * wide + x] = packed[best];
      }
    }
    return image;
  }

  drawAxes(context, panel) {
    const { header } = this;
    const { data, view, wide, high } = panel;
    context.font = FONT;
    context.fillStyle = this.ink;
    const cellWide = wide / view.cols;
    const cellHigh = high / view.rows;
    const pace = (cell, room) => {
      const wanted = room / cell;
      return [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000].find((step) => step >= wanted) ?? 5000;
    };
    const range = (start, count, step) => {
      const found = [];
      for (let at = Math.ceil(start / step) * step; at < start + count; at += step) found.push(at);
      return found;
    };
    const rowTokens = cellHigh >= TOKEN_ROOM;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const row of range(view.row - 0.5, view.rows, rowTokens ? 1 : pace(cellHigh, 18))) {
      if (row < 0 || row >= data.rows) continue;
      const y = MARGIN.top + (row + 0.5 - view.row) * cellHigh;
      const text = rowTokens ? header.tokens[data.row_tokens][row] : String(row);
      context.fillText(this.fit(context, text, MARGIN.left - 26), MARGIN.left - 4, y);
    }
    const colTokens = cellWide >= TOKEN_ROOM;
    const below = MARGIN.top + high;
    for (const col of range(view.col - 0.5, view.cols, colTokens ? 1 : pace(cellWide, NUMBER_ROOM))) {
      if (col < 0 || col >= data.cols) continue;
      const x = MARGIN.left + (col + 0.5 - view.col) * cellWide;
      if (colTokens) {
        context.save();
        context.translate(x, below + 4);
        context.rotate(-Math.PI / 2);
        context.fillText(this.fit(context, header.tokens[data.col_tokens][col], MARGIN.bottom - 26), 0, 0);
        context.restore();
      } else {
        context.textAlign = "center";
        context.fillText(String(col), x, below + 10);
        context.textAlign = "right";
      }
    }
    context.textAlign = "center";
    const room = colTokens ? MARGIN.bottom - 8 : 28;
    context.fillText(header.col_title, MARGIN.left + wide / 2, below + room);
    context.save();
    context.translate(8, MARGIN.top + high / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(header.row_title, 0, 0);
    context.restore();
  }

  fit(context, text, room) {
    if (context.measureText(text).width <= room) return text;
    const characters = [...text];
    while (characters.length > 1 && context.measureText(`${characters.join("")}…`).width > room) characters.pop();
    return `${characters.join("")}…`;
  }

  drawSelection(panel, ratio) {
    const context = panel.top.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, panel.top.width, panel.top.height);
    if (!this.selected) return;
    const chosen = this.panels[this.selected[0]];
    // Maps of one shape hold the same cells: the crosshair shows in all of them.
    if (!chosen || chosen.view !== panel.view) return;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const { view, wide, high } = panel;
    const [, row, col] = this.selected;
    const cellWide = wide / view.cols;
    const cellHigh = high / view.rows;
    const x = MARGIN.left + (col - view.col) * cellWide;
    const y = MARGIN.top + (row - view.row) * cellHigh;
    context.beginPath();
    context.rect(MARGIN.left - 2, MARGIN.top - 2, wide + 4, high + 4);
    context.clip();
    const cross = () => {
      context.beginPath();
      const [middleX, middleY] = [x + cellWide / 2, y + cellHigh / 2];
      const [gapX, gapY] = [Math.max(cellWide / 2, 4), Math.max(cellHigh / 2, 4)];
      for (const [fromX, fromY, toX, toY] of [
        [MARGIN.left, middleY, middleX - gapX, middleY],
        [middleX + gapX, middleY, MARGIN.left + wide, middleY],
        [middleX, MARGIN.top, middleX, middleY - gapY],
        [middleX, middleY + gapY, middleX, MARGIN.top + high],
      ]) {
        context.moveTo(fromX, fromY);
        context.lineTo(toX, toY);
      }
      context.rect(middleX - gapX, middleY - gapY, 2 * gapX, 2 * gapY);
      context.stroke();
    };
    context.strokeStyle = this.back;
    context.lineWidth = 3;
    cross();
    context.strokeStyle = this.accent;
    context.lineWidth = 1.25;
    cross();
  }
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".kvviz-canvas");
  // The same element is handed over again with new data: it is drawn in place, nothing flickers and the zoom stays.
  root.chart ??= new Chart(root);
  root.chart.send = (cell) => setTriggerValue("picked", cell);
  root.chart.show(decode(data));
  return () => {
    root.chart?.dispose();
    delete root.chart;
  };
}
