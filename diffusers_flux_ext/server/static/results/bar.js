/** Generate, progress, cancel, and everything that is wrong. */

import { fill, h } from "../core/dom.js";
import { icon } from "../core/icons.js";

/**
 * @param {HTMLElement} target
 * @param {{start: () => void, cancel: () => void}} act
 */
export function createBar(target, act) {
    const generate = h(
        "button",
        { type: "button", class: "button primary", id: "generate", on: { click: act.start } },
        "Generate",
    );
    const cancel = h(
        "button",
        { type: "button", class: "button", id: "cancel", hidden: true, on: { click: act.cancel } },
        icon("stop"),
        "Cancel",
    );
    const meter = h("progress", { max: 1, "aria-label": "Progress", hidden: true });
    const status = h("p", { class: "status", role: "status" });
    const problems = h("div", { class: "problems", role: "alert" });
    fill(
        target,
        problems,
        h("div", { class: "row bar" }, generate, cancel, h("div", { class: "progress" }, meter, status)),
    );

    document.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !generate.disabled) act.start();
    });
    return {
        busy() {
            fill(problems);
            generate.disabled = true;
            cancel.hidden = meter.hidden = false;
        },
        idle() {
            generate.disabled = false;
            cancel.hidden = meter.hidden = true;
        },
        progress(text, share) {
            status.textContent = text;
            if (share === null) meter.removeAttribute("value");
            else meter.value = share;
        },
        say: (text) => (status.textContent = text),
        /** List what is wrong; each entry leads to its field. */
        problems(found) {
            status.textContent = "";
            fill(
                problems,
                h(
                    "p",
                    {},
                    found.length > 1 ? `${found.length} things are to be changed:` : "One thing is to be changed:",
                ),
                h(
                    "ul",
                    {},
                    found.map((problem) => h("li", {}, problemLink(problem))),
                ),
            );
        },
        clear: () => fill(problems),
    };
}

function problemLink({ message, control, place }) {
    const text = control || !place ? message : `${place}: ${message}`;
    if (!control) return text;
    return h("button", { type: "button", class: "link-button", on: { click: () => reveal(control) } }, text);
}

/** Open what a control is folded into, and go there. */
function reveal(control) {
    for (let node = control.parentElement; node; node = node.parentElement) {
        if (node instanceof HTMLDetailsElement) node.open = true;
    }
    control.focus();
    control.scrollIntoView({ block: "center" });
}
