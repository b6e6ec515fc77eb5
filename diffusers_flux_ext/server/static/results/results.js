/** Everything that happens after "Generate", joined. */

import { byId } from "../core/dom.js";
import { buildJob } from "../core/job.js";
import { looksOfJob } from "../core/persist.js";
import { checkDraft } from "../form/check.js";
import { createBar } from "./bar.js";
import { createCompare } from "./compare.js";
import { createHistory } from "./history.js";
import { createResult } from "./result.js";
import { createRun } from "./run.js";

/**
 * @param {object} page
 * @param {any} page.store
 * @param {import("../core/catalog.js").Catalog} page.catalog
 * @param {import("../form/errors.js").Errors} page.errors
 * @param {ReturnType<typeof import("../shell/tabs.js").createTabs>} page.tabs
 * @param {(job: any, looks: any) => void} page.load
 * @param {(text: string) => void} page.say
 */
export function createResults({ store, catalog, errors, tabs, load, say }) {
    /** @type {string|null} */
    let last = null;
    let isFirst = true;
    const useAgain = (record) => {
        load(record.job, looksOfJob(record.id));
        tabs.reveal("draw");
        say("The job is on the page again.");
    };
    const result = createResult(byId("view-result"), { useAgain, shown: (url) => (last = url) });
    const compare = createCompare(byId("view-compare"));
    const show = (record) => {
        result.show(record);
        tabs.reveal("result");
    };
    const history = createHistory(byId("history"), {
        show,
        useAgain,
        say,
        compare: (images) => {
            compare.show(images);
            say("");
            tabs.reveal("compare");
        },
    });
    const refuse = (problems, message) => {
        const placed = errors.showAll(problems.map((each) => ({ ...each, message: sentence(each.message) })));
        bar.problems(placed.length ? placed : [{ message, place: "", control: null }]);
    };
    const run = createRun(store, () => buildJob(store.state), {
        busy: () => {
            isFirst = true;
            result.waiting();
            bar.busy();
        },
        idle: () => bar.idle(),
        progress: (text, share) => bar.progress(text, share),
        preview: (url) => {
            result.preview(url);
            // Once only: the user may go back to drawing meanwhile.
            if (isFirst) tabs.reveal("result");
            isFirst = false;
        },
        done: async (record) => {
            bar.say(doneText(record));
            show(record);
            await history.refresh();
        },
        failed: async (message) => {
            bar.say(message);
            await history.refresh();
        },
        refused: refuse,
    });
    const bar = createBar(byId("bar"), {
        start: () => {
            const problems = checkDraft(store.state, catalog);
            if (problems.length) refuse(problems, "");
            else run.start();
        },
        cancel: run.cancel,
    });
    return {
        lastImage: () => last,
        async start() {
            const records = await history.refresh();
            const newest = records.find((each) => each.images?.length);
            if (newest) result.show(newest);
            run.resume();
        },
    };
}

function doneText({ started, finished }) {
    const seconds = (Date.parse(finished) - Date.parse(started)) / 1000;
    return Number.isFinite(seconds) ? `Done in ${seconds.toFixed(1)} s.` : "Done.";
}

/** Messages of the server are parts of a line: make them sentences. */
function sentence(message) {
    const text = message.charAt(0).toUpperCase() + message.slice(1);
    return /[.!?]$/.test(text) ? text : `${text}.`;
}
