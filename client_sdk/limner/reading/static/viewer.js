// An image on a canvas: window and level, zoom, pan, a scale in centimetres. Two viewers share one `View`.

const LEVELS = 65536;
const WHEEL = 1.0015;
const BAR_CM = [0.5, 1, 2, 5, 10];

export const RESET = { level: 0.5, window: 1, zoom: 1, x: 0, y: 0 };

// What is shown of an image, and how: level and window as shares of its range, x and y in parts of the edge.
export class View extends EventTarget {
  constructor() {
    super();
    Object.assign(this, RESET, { invert: false, smooth: true, drag: "window" });
  }
  set(changes) {
    Object.assign(this, changes);
    this.window = clamp(this.window, 0.01, 2);
    this.level = clamp(this.level, 0, 1);
    this.zoom = clamp(this.zoom, 1, 16);
    const reach = (this.zoom - 1) / (2 * this.zoom) + 0.25 * (this.zoom > 1);
    this.x = clamp(this.x, -reach, reach);
    this.y = clamp(this.y, -reach, reach);
    this.dispatchEvent(new Event("change"));
  }
  reset() {
    this.set(RESET);
  }
  // The image stays where it is under a point given in parts of the edge from the middle of what is shown.
  zoomAt(factor, px, py) {
    const zoom = clamp(this.zoom * factor, 1, 16);
    this.set({ zoom, x: this.x + px / zoom - px / this.zoom, y: this.y + py / zoom - py / this.zoom });
  }
}

export class Viewer {
  // `frame` is the page's, and outlives the viewer: it is heard and painted on until `signal` is aborted.
  constructor(frame, view, signal) {
    this.frame = frame;
    this.canvas = frame.querySelector("canvas");
    this.view = view;
    this.source = document.createElement("canvas");
    this.table = new Uint8ClampedArray(LEVELS);
    this.pixels = null;
    view.addEventListener("change", () => this.draw(), { signal });
    const resized = new ResizeObserver(() => this.draw());
    resized.observe(frame);
    signal.addEventListener("abort", () => {
      resized.disconnect();
      cancelAnimationFrame(this.frame_);
    });
    this.listen(signal);
  }

  show(pixels, size, spacingMm) {
    Object.assign(this, { pixels, size, spacingMm });
    this.frame.classList.toggle("empty", pixels === null);
    this.rendered = "";
    this.paint();
  }

  draw() {
    if (this.frame_) return;
    this.frame_ = requestAnimationFrame(() => {
      this.frame_ = 0;
      this.paint();
    });
  }

  paint() {
    const edge = Math.round(this.frame.clientWidth * devicePixelRatio);
    const height = Math.round(this.frame.clientHeight * devicePixelRatio);
    if (!edge || !height) return;
    if (this.canvas.width !== edge || this.canvas.height !== height) Object.assign(this.canvas, { width: edge, height });
    const context = this.canvas.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, edge, height);
    if (!this.pixels) return;
    this.render();
    const { zoom, x, y, smooth } = this.view;
    const side = Math.min(edge, height) * zoom;
    this.side = side / devicePixelRatio;
    context.imageSmoothingEnabled = smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.source, edge / 2 + x * side - side / 2, height / 2 + y * side - side / 2, side, side);
    this.scale(context, edge, height, side);
  }

  // Grey values of the window, in the image's own raster.
  render() {
    const { level, window, invert } = this.view;
    const wanted = `${level} ${window} ${invert}`;
    if (this.rendered === wanted) return;
    this.rendered = wanted;
    const low = (level - window / 2) * (LEVELS - 1);
    const slope = 255 / (window * (LEVELS - 1));
    for (let value = 0; value < LEVELS; value++) {
      const grey = clamp((value - low) * slope, 0, 255);
      this.table[value] = invert ? 255 - grey : grey;
    }
    Object.assign(this.source, { width: this.size, height: this.size });
    const context = this.source.getContext("2d");
    const image = context.createImageData(this.size, this.size);
    const words = new Uint32Array(image.data.buffer);
    for (let place = 0; place < this.pixels.length; place++) {
      words[place] = 0xff000000 | (this.table[this.pixels[place]] * 0x010101);
    }
    context.putImageData(image, 0, 0);
  }

  // A bar of whole centimetres, a fifth of the frame or so.
  scale(context, width, height, side) {
    const perCm = side / ((this.size * this.spacingMm) / 10);
    const cm = BAR_CM.findLast((length) => length * perCm < width / 3) ?? BAR_CM[0];
    const unit = devicePixelRatio;
    const [right, bottom] = [width - 14 * unit, height - 16 * unit];
    const left = right - cm * perCm;
    context.font = `${12 * unit}px ui-sans-serif, system-ui, sans-serif`;
    context.textAlign = "right";
    for (const [style, thick] of [["#000c", 5], ["#fff", 2]]) {
      context.strokeStyle = style;
      context.lineWidth = thick * unit;
      context.beginPath();
      context.moveTo(left, bottom - 5 * unit);
      context.lineTo(left, bottom);
      context.lineTo(right, bottom);
      context.lineTo(right, bottom - 5 * unit);
      context.stroke();
      context.lineWidth = 3 * unit;
      if (style === "#fff") {
        context.fillStyle = style;
        context.fillText(`${cm} cm`, right, bottom - 9 * unit);
      } else context.strokeText(`${cm} cm`, right, bottom - 9 * unit);
    }
  }

  listen(signal) {
    const points = new Map();
    const frame = this.frame;
    frame.addEventListener("pointerdown", (event) => {
      if (event.button > 2) return;
      frame.setPointerCapture(event.pointerId);
      points.set(event.pointerId, event);
    }, { signal });
    for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, (event) => points.delete(event.pointerId), { signal });
    frame.addEventListener("pointermove", (event) => {
      const before = points.get(event.pointerId);
      if (!before) return;
      const others = [...points.values()].filter((point) => point.pointerId !== event.pointerId);
      points.set(event.pointerId, event);
      const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
      if (others.length) this.pinch(before, event, others[0], dx, dy);
      else if (this.view.drag === "pan" || event.buttons & 6 || event.shiftKey) this.pan(dx, dy);
      else this.window(dx, dy);
    }, { signal });
    frame.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomTo(WHEEL ** -event.deltaY, event.clientX, event.clientY);
    }, { passive: false, signal });
    frame.addEventListener("dblclick", (event) => this.zoomTo(event.shiftKey ? 0.5 : 2, event.clientX, event.clientY), { signal });
    frame.addEventListener("contextmenu", (event) => event.preventDefault(), { signal });
  }

  // Across: window, narrower to the left; down: darker, as workstations have it.
  window(dx, dy) {
    const { window, level } = this.view;
    const range = Math.max(200, this.frame.clientWidth);
    this.view.set({ window: window * Math.exp((2 * dx) / range), level: level + (dy / range) * window });
  }

  pan(dx, dy) {
    this.view.set({ x: this.view.x + dx / this.side, y: this.view.y + dy / this.side });
  }

  pinch(before, after, still, dx, dy) {
    const distance = (point) => Math.hypot(point.clientX - still.clientX, point.clientY - still.clientY);
    const middle = [(after.clientX + still.clientX) / 2, (after.clientY + still.clientY) / 2];
    if (distance(before) > 0) this.zoomTo(distance(after) / distance(before), ...middle);
    this.pan(dx / 2, dy / 2);
  }

  zoomTo(factor, clientX, clientY) {
    const box = this.frame.getBoundingClientRect();
    const edge = Math.min(box.width, box.height);
    this.view.zoomAt(factor, (clientX - box.left - box.width / 2) / edge, (clientY - box.top - box.height / 2) / edge);
  }
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
