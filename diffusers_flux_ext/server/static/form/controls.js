/** Controls for plain values. Each takes a field, how to read and write its value, and the form. */

import { h } from "../core/dom.js";

/**
 * @typedef {import("../core/schema.js").Field} Field
 * @typedef {import("./field.js").Value} Value
 * @typedef {{element: HTMLElement, target?: HTMLElement, isGroup?: boolean}} Control
 * `target` is what is described and focused; a group is labelled by `aria-labelledby`.
 */

/** @param {Field} field @param {Value} value @returns {Control} */
export function textControl(field, value) {
    if (field.list && !field.single) return linesControl(field, value);
    // An empty text is a value where it is the default, or where there is no default.
    const isOptional = !field.required && field.fallback !== "";
    const isLong = /prompt|instruction|text/.test(field.name);
    const node = h(isLong ? "textarea" : "input", {
        id: value.id, value: shownText(value.get()), placeholder: field.example ?? fallbackText(field), rows: isLong ? 2 : null,
        on: { input: () => value.set(node.value === "" && isOptional ? undefined : node.value) },
    });
    return { element: node };
}

/** A number or a text: what reads as a number is one. */
export function scalarControl(field, value) {
    const read = () => {
        const text = node.value.trim();
        value.set(text === "" ? undefined : Number.isFinite(Number(text)) ? Number(text) : text);
    };
    const node = h("input", { id: value.id, value: shownText(value.get()), placeholder: fallbackText(field), on: { input: read } });
    return { element: node };
}

/** One text on each line. */
function linesControl(field, value) {
    const node = h("textarea", {
        id: value.id, rows: 3, value: (value.get() ?? []).join("\n"), placeholder: "One on each line",
        on: {
            input: () => {
                const lines = node.value.split("\n").map((line) => line.trim()).filter(Boolean);
                value.set(lines.length ? lines : undefined);
            },
        },
    });
    return { element: node };
}

/** A number, or several with commas between them where a list is accepted. */
export function numberControl(field, value) {
    const node = h("input", {
        id: value.id, inputmode: field.integer ? "numeric" : "decimal", autocomplete: "off",
        value: [value.get() ?? []].flat().join(", "), placeholder: fallbackText(field),
        on: { input: () => read(false), change: () => read(true) },
    });
    const read = (says) => {
        const { wrong, found } = parseNumbers(node.value, field);
        if (wrong && says) value.refuse(wrong);
        // What cannot be read stays in the draft as it is, so that the server refuses it as well.
        if (!wrong) value.set(found);
        else if (says) value.set(node.value), value.refuse(wrong);
    };
    return { element: node };
}

/** A seed, or one for each image with commas between them. */
export function seedControl(field, value) {
    const { element } = numberControl({ ...field, integer: true, min: 0 }, value);
    const renew = () => {
        element.value = String(randomSeed());
        element.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const button = h("button", { type: "button", class: "button", on: { click: renew } }, "New seed");
    return { element: h("div", { class: "row" }, element, button), target: element };
}

/** @returns {number} */
export function randomSeed() {
    return crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
}

export function choiceControl(field, value) {
    const current = value.get();
    const choices = [undefined, ...(field.nullable ? [null] : []), ...field.choices];
    const node = h("select", { id: value.id, on: { change: () => value.set(choices[node.selectedIndex]) } },
        choices.map((choice) => h("option", { selected: choice === current }, choiceText(choice, field))));
    return { element: node };
}

export function flagControl(field, value) {
    if (field.nullable) return choiceControl({ ...field, choices: [true, false] }, value);
    const node = h("input", {
        type: "checkbox", id: value.id, checked: value.get() ?? field.fallback ?? false,
        on: { change: () => value.set(node.checked) },
    });
    return { element: node };
}

/** Numbers by name: one on each line, such as `brightness: 0.7`. */
export function tableControl(field, value) {
    const example = field.example ?? "brightness: 0.7";
    const node = h("textarea", {
        id: value.id, rows: 2, placeholder: example,
        value: Object.entries(value.get() ?? {}).map(([name, each]) => `${name}: ${[each ?? "none"].flat().join(", ")}`).join("\n"),
        on: { input: () => read(false), change: () => read(true) },
    });
    const read = (says) => {
        const lines = node.value.split("\n").filter((line) => line.trim());
        const rows = lines.map((line) => line.match(/^\s*([^:=]+?)\s*[:=]\s*(.*?)\s*$/));
        const wrong = lines.find((_, index) => !rows[index] || !rows[index][2].split(",").every((each) => Number.isFinite(Number(each))));
        if (wrong === undefined) value.set(lines.length ? Object.fromEntries(rows.map(([, name, text]) => [name, numbersIn(text)])) : undefined);
        else if (says) value.refuse(`Got ${wrong.trim()}; expected a name and a number, such as ${example}.`);
    };
    return { element: node };
}

function numbersIn(text) {
    const numbers = text.split(",").map(Number);
    return numbers.length === 1 ? numbers[0] : numbers;
}

/** Values that have no control of their own. */
export function jsonControl(field, value) {
    const current = value.get();
    const node = h("textarea", {
        id: value.id, rows: 2, class: "code", spellcheck: "false", placeholder: fallbackText(field) || "A JSON value",
        value: current === undefined ? "" : JSON.stringify(current),
        on: { change: () => read() },
    });
    const read = () => {
        if (!node.value.trim()) return value.set(undefined);
        try {
            value.set(JSON.parse(node.value));
        } catch {
            value.refuse(`Got ${node.value.trim()}, which is not JSON. Put texts into "quotes".`);
        }
    };
    return { element: node };
}

/**
 * Read one number, or several.
 * @returns {{wrong?: string, found?: number|number[]}}
 */
export function parseNumbers(text, { list, single, integer, min, max, title }) {
    const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
    if (!parts.length) return { found: undefined };
    const numbers = parts.map(Number);
    const wrong = parts.find((_, index) => !Number.isFinite(numbers[index]) || (integer && !Number.isInteger(numbers[index])));
    if (wrong !== undefined) return { wrong: `Got ${wrong}; expected ${integer ? "a whole number" : "a number"}.` };
    if (numbers.length > 1 && !list) return { wrong: `${title} takes one number, got ${numbers.length}.` };
    const low = min !== undefined && numbers.find((each) => each < min);
    if (low !== false && low !== undefined) return { wrong: `Got ${low}; expected ${min} or more.` };
    const high = max !== undefined && numbers.find((each) => each > max);
    if (high !== false && high !== undefined) return { wrong: `Got ${high}; expected ${max} or less.` };
    return { found: numbers.length > 1 || !single ? numbers : numbers[0] };
}

function choiceText(choice, { fallback, required }) {
    if (choice === undefined && required) return "Choose one";
    if (choice === undefined) return fallback === undefined || fallback === null ? "default" : `default (${spoken(fallback)})`;
    return spoken(choice);
}

const spoken = (value) => ({ null: "none", true: "yes", false: "no" })[String(value)] ?? String(value);

function fallbackText({ fallback }) {
    if (fallback === undefined || fallback === null || fallback === "") return "";
    return typeof fallback === "object" ? JSON.stringify(fallback) : String(fallback);
}

function shownText(value) {
    return value === undefined || value === null ? "" : typeof value === "string" ? value : JSON.stringify(value);
}
