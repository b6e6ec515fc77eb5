/** Help texts of the schema: on demand in narrow rows; elsewhere their first sentence is shown, the rest on demand. */

import { h, uniqueId } from "../core/dom.js";

/**
 * @param {string} text
 * @returns {{element: HTMLElement|null, id: string|null}}
 */
export function helpOf(text) {
    const [first, rest] = splitSentence(text.replace(/\s+/g, " ").trim());
    if (!first) return { element: null, id: null };
    const id = uniqueId("help");
    const line = h("p", { class: "help", id }, marked(first));
    if (!rest) return { element: line, id };
    const more = h(
        "details",
        { class: "help-more" },
        h("summary", {}, "More"),
        h("p", { class: "help" }, marked(rest)),
    );
    return { element: h("div", {}, line, more), id };
}

/**
 * Put a help text behind a button. Assistive technology reads it with the field all the same.
 * @param {string} text
 * @param {string} title of the field
 * @returns {{element: HTMLElement|null, id: string|null, button: HTMLElement|null}}
 */
export function foldedHelp(text, title) {
    const whole = text.replace(/\s+/g, " ").trim();
    if (!whole) return { element: null, id: null, button: null };
    const id = uniqueId("help");
    const element = h("p", { class: "help", id, hidden: true }, marked(whole));
    const button = h(
        "button",
        {
            type: "button",
            class: "help-button",
            "aria-label": `Help: ${title}`,
            "aria-expanded": "false",
            "aria-controls": id,
            on: {
                click: () => {
                    element.hidden = !element.hidden;
                    button.setAttribute("aria-expanded", String(!element.hidden));
                },
            },
        },
        "?",
    );
    return { element, id, button };
}

/** Show words between backticks as code, and links by their text. */
export function marked(text) {
    const plain = text.replace(/\[([^\]]+)\]\([^)]*\)/g, "$1");
    return plain.split(/(`[^`]+`)/).map((part) => (part.startsWith("`") ? h("code", {}, part.slice(1, -1)) : part));
}

function splitSentence(text) {
    const end = text.search(/\.\s+[A-Z`]/);
    return end < 0 ? [text, ""] : [text.slice(0, end + 1), text.slice(end + 1).trim()];
}
