/** Two results beside each other, or one above the other with a slider between them. */

import { fill, h } from "../core/dom.js";

/** @param {HTMLElement} target */
export function createCompare(target) {
    const empty = h("p", { class: "empty" }, "Choose two images of the history with their compare buttons.");
    const [left, right] = [h("img", { alt: "" }), h("img", { alt: "" })];
    const [leftTitle, rightTitle] = [h("figcaption", {}), h("figcaption", {})];
    const frame = h(
        "div",
        { class: "compare is-slider", hidden: true },
        h("figure", { class: "compare-left" }, left, leftTitle),
        h("figure", { class: "compare-right" }, right, rightTitle),
    );
    const share = h("input", {
        type: "range",
        min: 0,
        max: 100,
        value: "50",
        "aria-label": "Share of the first image, in percent",
        on: { input: () => frame.style.setProperty("--share", `${share.value}%`) },
    });
    const controls = h(
        "div",
        { class: "row wrap compare-controls", hidden: true },
        h(
            "div",
            { class: "segments", role: "radiogroup", "aria-label": "How to compare" },
            mode("slider", "Slider", true),
            mode("sides", "Side by side", false),
        ),
        share,
    );
    fill(target, empty, frame, controls);
    frame.addEventListener("pointermove", (event) => {
        if (event.buttons !== 1 || !frame.classList.contains("is-slider")) return;
        const at = frame.getBoundingClientRect();
        share.value = String(Math.round(((event.clientX - at.left) / at.width) * 100));
        share.dispatchEvent(new Event("input"));
    });

    function mode(name, title, checked) {
        return h(
            "label",
            { class: "segment" },
            h("input", {
                type: "radio",
                name: "compare",
                value: name,
                checked,
                on: {
                    change: () => {
                        frame.classList.toggle("is-slider", name === "slider");
                        share.hidden = name !== "slider";
                    },
                },
            }),
            h("span", { class: "segment-text" }, title),
        );
    }
    return {
        show([one, other]) {
            [left.src, right.src] = [one.url, other.url];
            [left.alt, right.alt] = [`First: ${one.title}`, `Second: ${other.title}`];
            [leftTitle.textContent, rightTitle.textContent] = [one.title, other.title];
            frame.hidden = controls.hidden = false;
            empty.hidden = true;
        },
    };
}
