/** What was drawn before: to look at, to use again, to compare. */

import { api } from "../core/api.js";
import { fill, h } from "../core/dom.js";
import { icon } from "../core/icons.js";
import { altOf } from "./result.js";

const SHOWN = 40;

/**
 * @param {HTMLElement} target
 * @param {{show: (record: any) => void, useAgain: (record: any) => void, compare: (images: {url: string, title: string}[]) => void,
 *     say: (text: string) => void}} act
 */
export function createHistory(target, act) {
    const list = h("ol", { class: "history-list" });
    const empty = h("p", { class: "hint" }, "Nothing yet. What you generate stays here.");
    fill(target, empty, list);
    /** @type {any[]} */
    let records = [];
    /** @type {string[]} */
    let compared = [];

    async function refresh() {
        const { jobs } = await api.jobs(SHOWN);
        records = jobs.filter((each) => each.status !== "queued" && each.status !== "running");
        show();
        return records;
    }
    function show() {
        fill(list, records.map(entry));
        empty.hidden = records.length > 0;
    }
    function entry(record) {
        const title = titleOf(record);
        const image = record.images?.[0];
        return h(
            "li",
            { class: "history-item", "data-job": record.id },
            image
                ? h(
                      "button",
                      {
                          type: "button",
                          class: "thumb-button",
                          "aria-label": `Show ${title}`,
                          on: { click: () => act.show(record) },
                      },
                      h("img", { src: image.url, alt: altOf(record), loading: "lazy" }),
                  )
                : h("div", { class: "no-image", title: record.error?.message ?? null }, record.status),
            h("p", { class: "history-title", title }, title),
            h(
                "div",
                { class: "row history-buttons" },
                button("again", `Use again: ${title}`, () => act.useAgain(record)),
                image && button("compare", `Compare ${title}`, () => toggle(record), compared.includes(record.id)),
                button("delete", `Delete ${title}`, () => remove(record)),
            ),
        );
    }
    function toggle(record) {
        const without = compared.filter((id) => id !== record.id);
        compared = (without.length < compared.length ? without : [...without, record.id]).slice(-2);
        show();
        list.querySelector(`[data-job="${record.id}"] [aria-pressed]`)?.focus();
        if (compared.length < 2) return act.say(compared.length ? "Choose a second image to compare." : "");
        const chosen = compared.map((id) => records.find((each) => each.id === id));
        act.compare(chosen.map((each) => ({ url: each.images[0].url, title: titleOf(each) })));
    }
    async function remove(record) {
        await api.remove(record.id).catch((error) => act.say(error.message));
        compared = compared.filter((id) => id !== record.id);
        await refresh().catch((error) => act.say(error.message));
        target.closest("section")?.querySelector("h2")?.focus();
    }
    return { refresh };
}

function titleOf(record) {
    const prompts = (record.job?.conditions ?? []).flatMap((each) =>
        Array.isArray(each.prompts) ? each.prompts.flat() : [],
    );
    return [...prompts, record.job?.call?.prompt].flat().filter(Boolean).join(", ") || `Job ${record.id.slice(-6)}`;
}

function button(name, title, act, pressed) {
    return h(
        "button",
        {
            type: "button",
            class: "icon-button small",
            "aria-label": title,
            title: title.split(":")[0],
            "aria-pressed": pressed === undefined ? null : String(pressed),
            on: { click: act },
        },
        icon(name),
    );
}
