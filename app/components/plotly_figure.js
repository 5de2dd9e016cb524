// A plotly figure in a place of its own. What is in sight is drawn at once, the rest when the page has come to rest.

const LIBRARY = "$LIBRARY";
const REST = 150; // ms without a new figure before those out of sight are drawn
const FULL_SCREEN = {
  name: "fullscreen",
  title: "Fullscreen",
  icon: { width: 24, height: 24, path: "M4 9V4h5v2H6v3zm11-5h5v5h-2V6h-3zM4 15h2v3h3v2H4zm14 0h2v5h-5v-2h3z" },
  click: (plot) => {
    if (document.fullscreenElement) document.exitFullscreen();
    else plot.parentElement.requestFullscreen();
  },
};

/** Plotly, loaded once a page. Streamlit's own scripts say where the server's root is, whatever the page's path. */
function library() {
  globalThis.kvvizPlotly ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const streamlit = document.querySelector('script[type="module"][src*="static/js/"]');
    script.src = new URL(`../../${LIBRARY}`, streamlit.src).href;
    script.onload = () => resolve(globalThis.Plotly);
    script.onerror = () => reject(new Error(`${script.src} could not be loaded. Reload the page.`));
    document.head.append(script);
  });
  return globalThis.kvvizPlotly;
}

const waiting = (globalThis.kvvizFigures ??= { figures: new Set(), timer: 0 });

/** Draws what waits out of sight, one figure each time the browser is idle, once no new figure has come for a moment. */
function drawTheRest() {
  clearTimeout(waiting.timer);
  waiting.timer = setTimeout(() => {
    const next = () => {
      const [figure] = waiting.figures;
      if (!figure) return;
      figure.draw();
      requestIdleCallback(next);
    };
    requestIdleCallback(next);
  }, REST);
}

class Figure {
  constructor(root) {
    this.root = root;
    this.plot = root.querySelector(".plot");
    this.width = 0;
    this.near = false;
    this.sight = new IntersectionObserver(([entry]) => {
      this.near = entry.isIntersecting;
      if (this.near && waiting.figures.has(this)) this.draw();
    });
    this.sight.observe(root);
    this.size = new ResizeObserver(() => {
      if (this.drawn && root.clientWidth && root.clientWidth !== this.width) this.await();
    });
    this.size.observe(root);
    this.fullscreen = () => this.drawn && this.await();
    root.addEventListener("fullscreenchange", this.fullscreen);
  }

  dispose() {
    this.sight.disconnect();
    this.size.disconnect();
    waiting.figures.delete(this);
    this.root.removeEventListener("fullscreenchange", this.fullscreen);
    if (this.drawn) globalThis.Plotly.purge(this.plot);
  }

  show(text) {
    if (text === this.text) return;
    this.text = text;
    const { layout } = JSON.parse(text);
    this.root.style.minHeight = `${layout.height}px`; // before the picture, so that nothing below it moves
    this.await();
  }

  await() {
    waiting.figures.add(this);
    this.plot.dataset.state = "waiting";
    if (this.near) this.draw();
    else drawTheRest();
  }

  draw() {
    waiting.figures.delete(this);
    this.drawing = (this.drawing ?? library()).then(() => this.react()).catch((error) => this.fail(error));
  }

  async react() {
    const { data, layout } = JSON.parse(this.text);
    layout.width = this.width = this.root.clientWidth;
    if (document.fullscreenElement === this.root) layout.height = Math.max(layout.height, window.innerHeight);
    await globalThis.Plotly.react(this.plot, data, layout, { displaylogo: false, modeBarButtonsToAdd: [FULL_SCREEN] });
    if (!this.drawn) this.plot.on("plotly_click", ({ points }) => this.click(points));
    this.drawn = true;
    this.plot.dataset.state = waiting.figures.has(this) ? "waiting" : "drawn";
  }

  fail(error) {
    this.plot.dataset.state = "failed";
    this.root.querySelector(".failed").textContent = `This figure could not be drawn: ${error.message}`;
    console.error(error);
  }

  /** Python hears of the trace and of the mark's customdata; of a heatmap's cell it hears [row, col]. */
  click([{ data: { name }, pointNumber, customdata }]) {
    const data = Array.isArray(pointNumber) ? pointNumber : customdata;
    if (data !== undefined) this.send([name, ...data]);
  }
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".kvviz-figure");
  if (data.length === 0) {
    library().catch(() => {}); // The first figure says so in its place.
    return;
  }
  // The same element is handed over again with new data: it is drawn in place.
  root.figure ??= new Figure(root);
  root.figure.send = (clicked) => setTriggerValue("clicked", clicked);
  root.figure.show(new TextDecoder().decode(data));
  return () => {
    root.figure?.dispose();
    delete root.figure;
  };
}
