/** What the user has set so far. It is plain data, so that it can be saved as it is. */

/**
 * @typedef {[number, number, number, number]} Box Left, top, right and bottom in fractions of the canvas.
 * @typedef {{points: number[][], width: number, erase?: boolean}} Stroke
 * @typedef {{box: Box}|{strokes: Stroke[]}|{polygon: number[][]}|{image: string}} Area
 * @typedef {{id: string, name: string, color: string, prompt: string, area: Area|null}} Region
 * @typedef {{key: string, type: string, values: Record<string, any>}} Condition
 *
 * @typedef {object} Draft
 * @property {string} model
 * @property {string|null} pipeline `null` is the job's default.
 * @property {Record<string, any>} call
 * @property {Region[]} regions
 * @property {string|null} selected
 * @property {Record<string, any>} entity What the condition of the painted regions has beside prompts and masks.
 * @property {Condition[]} conditions
 * @property {{name: string, weight: number}[]} loras
 * @property {Record<string, any>} components
 * @property {Record<string, any>} additions
 * @property {Record<string, any>} memory
 * @property {Record<string, any>} output
 * @property {string|null} running The job that this page waits for.
 * @property {boolean} suggested Whether the LoRA for regions was suggested already.
 */

/** Told apart by hue and by lightness. */
const COLORS = ["#e5484d", "#3b82f6", "#30a46c", "#f5a524", "#8e4ec6", "#12a5b8", "#e54898", "#7c6a52"];

/** @returns {Draft} */
export function emptyDraft(model = "", call = {}) {
    return {
        model,
        pipeline: null,
        call: { prompt: "", ...call },
        regions: [],
        selected: null,
        entity: {},
        conditions: [],
        loras: [],
        components: {},
        additions: {},
        memory: {},
        output: {},
        running: null,
        suggested: false,
    };
}

/** Return an id for something new. */
export function newId() {
    return [...crypto.getRandomValues(new Uint8Array(5))].map((byte) => byte.toString(36).padStart(2, "0")).join("");
}

/**
 * Make a region with the next free name and colour.
 * @param {Region[]} others
 * @param {Area|null} area
 * @param {Partial<Region>} [given]
 * @returns {Region}
 */
export function newRegion(others, area = null, given = {}) {
    const names = new Set(others.map((each) => each.name));
    let number = others.length + 1;
    while (names.has(`Region ${number}`)) number += 1;
    const used = new Set(others.map((each) => each.color));
    const color = COLORS.find((each) => !used.has(each)) ?? COLORS[others.length % COLORS.length];
    return { id: newId(), name: `Region ${number}`, color, prompt: "", area, ...given };
}

/** @param {Draft} draft */
export function selectedRegion(draft) {
    return draft.regions.find((each) => each.id === draft.selected) ?? null;
}

/** Return the size of what is drawn, in pixels. */
export function canvasSize(draft, model) {
    const [width, height] = model?.size ?? [1024, 1024];
    return [positive(draft.call.width) ?? width, positive(draft.call.height) ?? height];
}

function positive(value) {
    return Number.isFinite(value) && value > 0 ? value : null;
}
