/** The canvas on the page: its size, what is beneath, and every region on it. */

import { selectedRegion } from "../core/draft.js";
import { boundsOf, HANDLES, handlePoint } from "./geometry.js";
import { drawArea, outlineArea } from "./masks.js";

const FILL = 0.42;
const FILL_SELECTED = 0.58;
/** Half the width of a handle, in CSS pixels. */
export const HANDLE = 6;

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
        for (const region of store.state.regions) if (region.area) drawLabel(region);
        if (selected?.area) drawFrame(selected);
        if (brush) drawBrush();
    }

    function drawLabel(region) {
        const bounds = boundsOf(region.area);
        if (!bounds) return;
        const scale = devicePixelRatio;
        const text = shortened(region.prompt.trim() || region.name);
        context.font = `600 ${12 * scale}px system-ui, sans-serif`;
        const width = context.measureText(text).width + 14 * scale;
        const x = Math.min(bounds[0] * canvas.width + 4 * scale, canvas.width - width - 4 * scale);
        const y = bounds[1] * canvas.height + 4 * scale;
        context.fillStyle = "rgb(20 22 28 / 78%)";
        context.beginPath();
        context.roundRect(Math.max(2 * scale, x), y, width, 21 * scale, 7 * scale);
        context.fill();
        context.fillStyle = "#fff";
        context.textBaseline = "middle";
        context.fillText(text, Math.max(2 * scale, x) + 7 * scale, y + 11 * scale);
    }

    function drawFrame(region) {
        const bounds = boundsOf(region.area);
        if (!bounds) return;
        const [left, top, right, bottom] = bounds;
        const scale = devicePixelRatio;
        const { width, height } = canvas;
        context.save();
        for (const [color, offset] of [["#fff", 0], ["#14161c", 5]]) {
            context.strokeStyle = color;
            context.lineWidth = 1.5 * scale;
            context.setLineDash([5 * scale, 5 * scale]);
            context.lineDashOffset = offset * scale;
            context.strokeRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
        }
        context.restore();
        if (region.area.box) HANDLES.forEach((handle) => drawHandle(handlePoint(bounds, handle)));
    }

    function drawHandle([x, y]) {
        const half = (HANDLE - 1) * devicePixelRatio;
        context.beginPath();
        context.roundRect(x * canvas.width - half, y * canvas.height - half, 2 * half, 2 * half, half / 2);
        context.fillStyle = "#fff";
        context.strokeStyle = "#14161c";
        context.lineWidth = 1.5 * devicePixelRatio;
        context.fill();
        context.stroke();
    }

    function drawBrush() {
        const radius = (brush.width * Math.min(canvas.width, canvas.height)) / 2;
        for (const [color, extra] of [["#fff", 0], ["#14161c", 1.5]]) {
            context.beginPath();
            context.arc(brush.at[0] * canvas.width, brush.at[1] * canvas.height, radius + extra * devicePixelRatio, 0, 7);
            context.strokeStyle = color;
            context.lineWidth = 1.5 * devicePixelRatio;
            context.stroke();
        }
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

function shortened(text) {
    return text.length > 26 ? `${text.slice(0, 25)}…` : text;
}
