/** The job as JSON: to copy, save, load and change. */

import { h } from "../core/dom.js";
import { icon } from "../core/icons.js";
import { jobInPng } from "../core/png_job.js";
import { panel } from "./panel.js";

/**
 * @param {any} store
 * @param {() => any} job makes the job of the draft
 * @param {(job: any) => void} load
 * @param {(text: string) => void} say
 */
export function createJobPanel(store, job, load, say) {
    const text = h("textarea", {
        id: "job-json",
        class: "code",
        rows: 14,
        spellcheck: "false",
        "aria-label": "The job as JSON",
    });
    const wrong = h("p", { class: "error", role: "alert", hidden: true });
    const file = h("input", {
        type: "file",
        id: "job-file",
        class: "sr-only",
        accept: ".json,application/json,image/png",
        on: { change: () => file.files[0] && open(file.files[0]) },
    });
    const button = (name, title, act) =>
        h("button", { type: "button", class: "button small", on: { click: act } }, icon(name), title);
    const show = () => {
        if (document.activeElement !== text) text.value = JSON.stringify(job(), null, 2);
    };
    const attempt = async (read) => {
        wrong.hidden = true;
        try {
            load(await read());
            say("The job is loaded.");
        } catch (error) {
            wrong.textContent = error.message;
            wrong.hidden = false;
        }
    };
    const open = (chosen) =>
        attempt(async () => {
            file.value = "";
            return chosen.type === "image/png" ? jobInPng(await chosen.arrayBuffer()) : parsed(await chosen.text());
        });

    store.subscribe(show);
    show();
    return panel(
        "Job as JSON",
        [
            text,
            wrong,
            h(
                "div",
                { class: "row wrap" },
                button("copy", "Copy", () =>
                    navigator.clipboard.writeText(JSON.stringify(job(), null, 2)).then(
                        () => say("The job is copied."),
                        () => say("The browser does not allow copying; select the text instead."),
                    ),
                ),
                button("save", "Save", () => save(job())),
                file,
                h("label", { for: file.id, class: "button small" }, icon("load"), "Load"),
                button("again", "Apply changes", () => attempt(async () => parsed(text.value))),
            ),
            h(
                "p",
                { class: "help" },
                "The same job runs in Python and on the command line. Load takes an image of this server as well.",
            ),
        ],
        { id: "panel-job" },
    ).element;
}

function parsed(text) {
    let job;
    try {
        job = JSON.parse(text);
    } catch (error) {
        throw new Error(`This is not JSON: ${error.message}.`);
    }
    if (job === null || typeof job !== "object" || Array.isArray(job))
        throw new Error("A job is an object in braces.");
    return job;
}

function save(job) {
    const url = URL.createObjectURL(new Blob([`${JSON.stringify(job, null, 2)}\n`], { type: "application/json" }));
    h("a", { href: url, download: "job.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
}
