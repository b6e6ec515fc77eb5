/** What is drawn above the regions: labels, the frame of the selected one, the brush. */

import { boundsOf, HANDLES, handlePoint } from "./geometry.js";

/** Half the width of a handle, in CSS pixels. */
export const HANDLE = 6;

/** Name a region by its prompt. */
export function drawLabel(context, region) {
    const bounds = boundsOf(region.area);
    if (!bounds) return;
    const scale = devicePixelRatio;
    const text = shortened(region.prompt.trim() || region.name);
    context.font = `600 ${12 * scale}px system-ui, sans-serif`;
    const width = context.measureText(text).width + 14 * scale;
    const x = Math.min(bounds[0] * context.canvas.width + 4 * scale, context.canvas.width - width - 4 * scale);
    const y = bounds[1] * context.canvas.height + 4 * scale;
    context.fillStyle = "rgb(20 22 28 / 78%)";
    context.beginPath();
    context.roundRect(Math.max(2 * scale, x), y, width, 21 * scale, 7 * scale);
    context.fill();
    context.fillStyle = "#fff";
    context.textBaseline = "middle";
    context.fillText(text, Math.max(2 * scale, x) + 7 * scale, y + 11 * scale);
}

/** Frame the selected region, with handles if it is a box. */
export function drawFrame(context, region) {
    const bounds = boundsOf(region.area);
    if (!bounds) return;
    const [left, top, right, bottom] = bounds;
    const scale = devicePixelRatio;
    const { width, height } = context.canvas;
    context.save();
    for (const [color, offset] of [
        ["#fff", 0],
        ["#14161c", 5],
    ]) {
        context.strokeStyle = color;
        context.lineWidth = 1.5 * scale;
        context.setLineDash([5 * scale, 5 * scale]);
        context.lineDashOffset = offset * scale;
        context.strokeRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
    }
    context.restore();
    if (region.area.box) HANDLES.forEach((handle) => drawHandle(context, handlePoint(bounds, handle)));
}

function drawHandle(context, [x, y]) {
    const half = (HANDLE - 1) * devicePixelRatio;
    context.beginPath();
    context.roundRect(x * context.canvas.width - half, y * context.canvas.height - half, 2 * half, 2 * half, half / 2);
    context.fillStyle = "#fff";
    context.strokeStyle = "#14161c";
    context.lineWidth = 1.5 * devicePixelRatio;
    context.fill();
    context.stroke();
}

/** Show where the brush would paint. */
export function drawBrush(context, brush) {
    const radius = (brush.width * Math.min(context.canvas.width, context.canvas.height)) / 2;
    for (const [color, extra] of [
        ["#fff", 0],
        ["#14161c", 1.5],
    ]) {
        context.beginPath();
        context.arc(
            brush.at[0] * context.canvas.width,
            brush.at[1] * context.canvas.height,
            radius + extra * devicePixelRatio,
            0,
            7,
        );
        context.strokeStyle = color;
        context.lineWidth = 1.5 * devicePixelRatio;
        context.stroke();
    }
}

function shortened(text) {
    return text.length > 26 ? `${text.slice(0, 25)}…` : text;
}
