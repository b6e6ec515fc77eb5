/** From the draft to the job that is sent, and back. */

import { emptyDraft, newId, newRegion } from "./draft.js";

/** The condition whose prompts and masks are the regions on the canvas. */
export const CANVAS_CONDITION = "EntityRegions";

/** @typedef {import("./draft.js").Draft} Draft */

/**
 * @param {Draft} draft
 * @returns {{job: any, placeOf: (field: string) => string}} the job, and what finds the place on the page of a field of it
 */
export function buildJob(draft) {
    const drawn = draft.regions.filter((each) => each.prompt.trim() && each.area);
    const keys = draft.conditions.map((each) => each.key);
    const job = { version: 1, model: { path: draft.model } };
    if (draft.pipeline) job.pipeline = draft.pipeline;
    addFilled(job, "components", draft.components);
    if (draft.loras.length) job.loras = draft.loras.map(({ name, weight }) => ({ path: name, weight }));
    addFilled(job, "additions", draft.additions);
    const conditions = [
        ...(drawn.length ? [canvasCondition(drawn, draft.entity)] : []),
        ...draft.conditions.map(({ type, values }) => ({ type, ...withAreas(values, draft.regions) })),
    ];
    if (conditions.length) job.conditions = conditions;
    job.call = withAreas(draft.call, draft.regions);
    addFilled(job, "memory", draft.memory);
    addFilled(job, "output", draft.output);
    return { job, placeOf: (field) => placeOf(field, drawn, keys) };
}

/** Write an area as a job has it. */
function areaToJob(area) {
    return area && ("box" in area ? area.box : "image" in area ? area.image : area);
}

/** Read an area of a job, or return `null` for what is none. */
function areaFromJob(value) {
    if (Array.isArray(value) && value.length === 4 && value.every(Number.isFinite)) return { box: value };
    if (typeof value === "string") return { image: value };
    return value && (value.strokes || value.polygon) ? value : null;
}

/**
 * @param {any} given the job
 * @param {(type: string, field: string) => boolean} isRegion whether a field of a condition holds regions
 * @param {Record<string, {name: string, color: string}>} [looks] names and colours by the text of an area
 * @returns {Draft}
 */
export function draftOf(given, isRegion, looks = {}) {
    const job = withUploads(given);
    const model = typeof job.model === "string" ? job.model : (job.model?.path ?? "");
    const draft = { ...emptyDraft(model), call: { prompt: "", ...job.call }, suggested: true };
    draft.pipeline = job.pipeline ?? null;
    draft.loras = (job.loras ?? []).map((each) => ({ name: each.path ?? each, weight: each.weight ?? 1 }));
    for (const name of ["components", "additions", "memory", "output"]) draft[name] = job[name] ?? {};
    for (const { type, ...values } of job.conditions ?? []) {
        if (type === CANVAS_CONDITION && !draft.regions.some((each) => each.prompt) && isFlat(values)) {
            const { prompts, masks, ...rest } = values;
            prompts.forEach((prompt, index) => regionOf(draft, masks[index], looks, prompt));
            draft.entity = rest;
        } else {
            draft.conditions.push({ key: newId(), type, values: onCanvas(draft, type, values, isRegion, looks) });
        }
    }
    draft.selected = draft.regions[0]?.id ?? null;
    return draft;
}

/** Return names and colours of regions, which a job does not hold, by the text of their areas. */
export function looksOf(regions) {
    return Object.fromEntries(
        regions
            .filter((each) => each.area)
            .map(({ area, name, color }) => [JSON.stringify(areaToJob(area)), { name, color }]),
    );
}

function canvasCondition(drawn, entity) {
    return {
        type: CANVAS_CONDITION,
        prompts: drawn.map((each) => each.prompt.trim()),
        masks: drawn.map((each) => areaToJob(each.area)),
        ...entity,
    };
}

function addFilled(job, name, values) {
    if (Object.keys(values).length) job[name] = values;
}

/** Name the inputs of a job in an image, which are there by their SHA-256, as the uploads that they were. */
function withUploads(value) {
    if (value === null || typeof value !== "object") return value;
    if (Array.isArray(value)) return value.map(withUploads);
    if (typeof value.sha256 === "string") return `upload:${value.sha256}`;
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, withUploads(each)]));
}

function withAreas(value, regions) {
    if (value === null || typeof value !== "object") return value;
    if (Array.isArray(value)) return value.map((each) => withAreas(each, regions));
    if (typeof value.canvas === "string")
        return areaToJob(regions.find((each) => each.id === value.canvas)?.area ?? null);
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, withAreas(each, regions)]));
}

function placeOf(field, drawn, keys) {
    const [root, index, ...rest] = field.split(".");
    if (root !== "conditions" || index === undefined) return field;
    const first = drawn.length ? 1 : 0;
    if (first && Number(index) === 0) {
        const region = ["prompts", "masks"].includes(rest[0]) && drawn[Number(rest[1])];
        return region
            ? `regions.${region.id}.${rest[0] === "prompts" ? "prompt" : "area"}`
            : ["entity", ...rest].join(".");
    }
    return ["conditions", keys[Number(index) - first], ...rest].join(".");
}

function isFlat({ prompts, masks }) {
    const both = Array.isArray(prompts) && Array.isArray(masks) && prompts.length === masks.length;
    return both && prompts.every((each) => typeof each === "string") && masks.every(areaFromJob);
}

function regionOf(draft, value, looks, prompt = "") {
    const area = areaFromJob(value);
    const text = JSON.stringify(areaToJob(area));
    const known = draft.regions.find(
        (each) => JSON.stringify(areaToJob(each.area)) === text && (!prompt || !each.prompt),
    );
    const region = known ?? newRegion(draft.regions, area, looks[text] ?? {});
    if (!known) draft.regions.push(region);
    if (prompt) region.prompt = prompt;
    return region;
}

/** Put the regions that a condition holds onto the canvas, where they can be seen and changed. */
function onCanvas(draft, type, values, isRegion, looks) {
    const place = (value) => {
        if (Array.isArray(value) && !areaFromJob(value)) return value.map(place);
        return areaFromJob(value) ? { canvas: regionOf(draft, value, looks).id } : value;
    };
    return Object.fromEntries(
        Object.entries(values).map(([name, value]) => [name, isRegion(type, name) ? place(value) : value]),
    );
}
