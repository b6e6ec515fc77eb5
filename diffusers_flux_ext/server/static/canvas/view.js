/** The canvas on the page: its size, what is beneath, and every region on it. */

import { selectedRegion } from "../core/draft.js";
import { drawBrush, drawFrame, drawLabel } from "./marks.js";
import { drawArea, outlineArea } from "./masks.js";

const FILL = 0.42;
const FILL_SELECTED = 0.58;

/**
 * @param {HTMLCanvasElement} canvas
 * @param {ReturnType<typeof import("../core/store.js").createStore>} store
 * @param {() => [number, number]} size of the image that is drawn
 */
export function createView(canvas, store, size) {
    const context = canvas.getContext("2d");
    /** @type {CanvasImageSource|null} */
    let backdrop = null;
    /** @type {{at: number[], width: number}|null} */
    let brush = null;
    let asked = 0;

    const redraw = () => {
        asked ||= requestAnimationFrame(() => {
            asked = 0;
            draw();
        });
    };

    function fit() {
        const [width, height] = size();
        canvas.style.aspectRatio = `${width} / ${height}`;
        canvas.style.setProperty("--ratio", String(width / height));
        const scale = devicePixelRatio || 1;
        const wide = Math.max(1, Math.round(canvas.clientWidth * scale));
        const high = Math.max(1, Math.round((canvas.clientWidth * scale * height) / width));
        if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
        redraw();
    }

    function draw() {
        const { width, height } = canvas;
        context.clearRect(0, 0, width, height);
        if (backdrop) context.drawImage(backdrop, 0, 0, width, height);
        const selected = selectedRegion(store.state);
        for (const region of store.state.regions.filter((each) => each.area)) {
            drawArea(context, region.area, region.color, region === selected ? FILL_SELECTED : FILL, redraw);
            outlineArea(context, region.area, region.color, 2 * devicePixelRatio);
        }
        for (const region of store.state.regions) if (region.area) drawLabel(context, region);
        if (selected?.area) drawFrame(context, selected);
        if (brush) drawBrush(context, brush);
    }

    const empty = canvas.parentElement.querySelector(".canvas-empty");
    const showEmpty = () => (empty.hidden = store.state.regions.some((each) => each.area));
    store.subscribe(showEmpty);
    showEmpty();
    new ResizeObserver(fit).observe(canvas.parentElement ?? canvas);
    store.subscribe(fit);
    fit();
    return {
        redraw,
        /** Show an image beneath the regions, or nothing. */
        setBackdrop(image) {
            backdrop = image;
            redraw();
        },
        /** Show where the brush would paint, or nothing. */
        setBrush(next) {
            brush = next;
            redraw();
        },
    };
}
