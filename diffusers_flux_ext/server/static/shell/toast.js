/** Short messages that need no answer. */

import { byId, h } from "../core/dom.js";

const SECONDS = 5;

/** @param {string} text an empty one takes the last message away */
export function say(text) {
    if (!text) return byId("toasts").replaceChildren();
    const node = h("p", { class: "toast" }, text);
    byId("toasts").replaceChildren(node);
    setTimeout(() => node.remove(), SECONDS * 1000);
}
