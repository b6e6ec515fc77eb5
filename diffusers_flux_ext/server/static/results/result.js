/** The newest result, or the preview of the one that is drawn. */

import { fill, h } from "../core/dom.js";
import { icon } from "../core/icons.js";

/**
 * @param {HTMLElement} target
 * @param {{useAgain: (record: any) => void, shown: (url: string|null) => void}} act
 */
export function createResult(target, act) {
    const image = h("img", { id: "result-image", alt: "" });
    const empty = h("p", { class: "empty" }, "The image appears here while it is drawn.");
    const figure = h("div", { class: "result-frame" }, empty, image);
    const others = h("div", { class: "result-others", role: "group", "aria-label": "Images of this job" });
    const foot = h("div", { class: "row wrap result-foot" });
    fill(target, figure, others, foot);
    image.hidden = true;

    const put = (url, alt, isPreview) => {
        image.src = url;
        image.alt = alt;
        image.hidden = false;
        empty.hidden = true;
        figure.classList.toggle("is-preview", isPreview);
    };
    const choose = (record, index) => {
        const each = record.images[index];
        put(each.url, altOf(record), false);
        act.shown(each.url);
        fill(
            foot,
            h(
                "span",
                { class: "facts-line" },
                `${each.width} × ${each.height}${each.seed === null || each.seed === undefined ? "" : `, seed ${each.seed}`}`,
            ),
            h(
                "a",
                { class: "button small", href: each.url, download: `${record.id}-${index}.${fileType(record)}` },
                icon("save"),
                "Download",
            ),
            h(
                "button",
                { type: "button", class: "button small", on: { click: () => act.useAgain(record) } },
                icon("again"),
                "Use again",
            ),
        );
        [...others.children].forEach((node, at) => node.setAttribute("aria-pressed", String(at === index)));
    };
    return {
        preview: (url) => put(url, "Preview of the image that is drawn", true),
        show(record) {
            fill(
                others,
                record.images.length > 1 &&
                    record.images.map((each, index) =>
                        h(
                            "button",
                            {
                                type: "button",
                                class: "thumb-button",
                                "aria-label": `Image ${index + 1}`,
                                on: { click: () => choose(record, index) },
                            },
                            h("img", { src: each.url, alt: "" }),
                        ),
                    ),
            );
            choose(record, 0);
        },
        waiting() {
            fill(others);
            fill(foot);
        },
    };
}

/** Describe a result by its prompts. */
export function altOf(record) {
    const prompts = (record.job?.conditions ?? []).flatMap((each) =>
        Array.isArray(each.prompts) ? each.prompts.flat() : [],
    );
    const text = [record.job?.call?.prompt, ...prompts].flat().filter(Boolean).join("; ");
    return text ? `Result: ${text}` : "Result without a prompt";
}

const fileType = (record) => record.job?.output?.format ?? "png";
