/** Areas as coloured layers. They only show what the job says: the server draws the masks from the same numbers. */

import { urlOf } from "../core/images.js";

/** @type {Map<string, HTMLImageElement|null>} Mask images by upload; `null` while one is loading. */
const loaded = new Map();

/**
 * Draw an area in one colour.
 * @param {CanvasRenderingContext2D} target
 * @param {import("../core/draft.js").Area} area
 * @param {string} color
 * @param {number} alpha
 * @param {() => void} redraw runs when an image has arrived
 */
export function drawArea(target, area, color, alpha, redraw) {
    const { width, height } = target.canvas;
    const layer = new OffscreenCanvas(width, height);
    const context = layer.getContext("2d");
    context.fillStyle = context.strokeStyle = color;
    context.lineCap = context.lineJoin = "round";
    if (area.box) fillBox(context, area.box);
    else if (area.polygon) fillPolygon(context, area.polygon);
    else if (area.strokes) area.strokes.forEach((stroke) => drawStroke(context, stroke));
    else if (area.image) drawMask(context, area.image, color, redraw);
    target.save();
    target.globalAlpha = alpha;
    target.drawImage(layer, 0, 0);
    target.restore();
}

/** Draw the outline of a box or a polygon; painted areas have none. */
export function outlineArea(target, area, color, lineWidth) {
    target.save();
    target.strokeStyle = color;
    target.lineWidth = lineWidth;
    const { width, height } = target.canvas;
    if (area.box) {
        const [left, top, right, bottom] = area.box;
        target.strokeRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
    } else if (area.polygon) {
        trace(target, area.polygon);
        target.closePath();
        target.stroke();
    }
    target.restore();
}

function fillBox(context, [left, top, right, bottom]) {
    const { width, height } = context.canvas;
    context.fillRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
}

function fillPolygon(context, points) {
    trace(context, points);
    context.fill();
}

function drawStroke(context, { points, width, erase }) {
    const thickness = width * Math.min(context.canvas.width, context.canvas.height);
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.lineWidth = thickness;
    trace(context, points.length > 1 ? points : [points[0], points[0]]);
    context.stroke();
}

function trace(context, points) {
    const { width, height } = context.canvas;
    context.beginPath();
    points.forEach(([x, y], index) => context[index ? "lineTo" : "moveTo"](x * width, y * height));
}

function drawMask(context, id, color, redraw) {
    if (!loaded.has(id)) load(id, redraw);
    const image = loaded.get(id);
    if (!image) return;
    const { width, height } = context.canvas;
    context.drawImage(image, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    for (let at = 0; at < pixels.data.length; at += 4) {
        const light = (pixels.data[at] + pixels.data[at + 1] + pixels.data[at + 2]) / 3;
        pixels.data.set([red, green, blue, light >= 128 && pixels.data[at + 3] ? 255 : 0], at);
    }
    context.putImageData(pixels, 0, 0);
}

async function load(id, redraw) {
    loaded.set(id, null);
    const url = await urlOf(id);
    if (!url) return;
    const image = new Image();
    image.src = url;
    await image.decode().then(
        () => loaded.set(id, image),
        () => null,
    );
    redraw();
}
