/** A foldable part of the settings. */

import { h } from "../core/dom.js";

/**
 * @param {string} title
 * @param {Node|Node[]} body
 * @param {{open?: boolean, id?: string}} [options]
 */
export function panel(title, body, { open = false, id } = {}) {
    const count = h("span", { class: "badge", hidden: true });
    const element = h(
        "details",
        { class: "panel", open, id },
        h("summary", {}, h("h3", {}, title), count),
        h("div", { class: "panel-body" }, body),
    );
    return {
        element,
        /** Show how much is set inside. */
        count(number) {
            count.textContent = String(number);
            count.hidden = !number;
        },
    };
}
