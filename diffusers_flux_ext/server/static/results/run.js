/** From "Generate" to the last event of a job. */

import { api, ApiError } from "../core/api.js";
import { ensureSent, uploadsIn } from "../core/images.js";
import { looksOf } from "../core/job.js";
import { rememberLooks } from "../core/persist.js";

const RETRY_SECONDS = 2;

/**
 * @typedef {object} Told Who hears of it.
 * @property {(text: string, share: number|null) => void} progress `null` where the share is not known.
 * @property {(url: string) => void} preview
 * @property {(record: any) => void} done
 * @property {(message: string) => void} failed
 * @property {(problems: {place: string, message: string}[], message: string) => void} refused
 * @property {() => void} idle Runs when nothing is drawn any longer, or not yet.
 * @property {() => void} busy
 */

/**
 * @param {any} store
 * @param {() => {job: any, placeOf: (field: string) => string}} build
 * @param {Told} told
 */
export function createRun(store, build, told) {
    let stop = () => {};

    async function start() {
        const { job, placeOf } = build();
        told.busy();
        told.progress("Sending …", null);
        try {
            await ensureSent(uploadsIn(job));
            const { id } = await api.submit(job);
            rememberLooks(id, looksOf(store.state.regions));
            store.update((draft) => (draft.running = id));
            follow(id);
        } catch (error) {
            if (!(error instanceof ApiError)) throw error;
            const problems = error.problems.map(({ field, message }) => ({ place: placeOf(field), message }));
            told.refused(problems, error.message);
            told.idle();
        }
    }

    function follow(id) {
        told.busy();
        stop();
        stop = api.follow(id, {
            queued: ({ position }) =>
                told.progress(position > 0 ? `Waiting: ${position} before this one` : "Waiting …", null),
            started: () => told.progress("Preparing …", null),
            step: ({ step, total }) => told.progress(`Step ${step} of ${total}`, step / total),
            preview: ({ image }) => told.preview(image),
            done: () => finish(() => api.job(id).then(told.done)),
            failed: ({ error }) => finish(() => told.failed(error?.message ?? "The server could not draw this job.")),
            cancelled: () => finish(() => told.failed("Cancelled.")),
            lost: () => setTimeout(recover, RETRY_SECONDS * 1000, id),
        });
    }

    /** The stream was cut: ask what became of the job. */
    async function recover(id) {
        if (store.state.running !== id) return;
        try {
            const record = await api.job(id);
            if (record.status === "done") await finish(() => told.done(record));
            else if (record.finished) await finish(() => told.failed(record.error?.message ?? "Cancelled."));
            else follow(id);
        } catch (error) {
            if (error.status === 404)
                return finish(() => told.failed("The server does not know this job any longer."));
            told.progress("The server does not answer. Trying again …", null);
            setTimeout(recover, RETRY_SECONDS * 1000, id);
        }
    }

    async function finish(last) {
        stop();
        store.update((draft) => (draft.running = null));
        await Promise.resolve(last()).catch((error) => told.failed(error.message));
        told.idle();
    }

    return {
        start,
        /** Go on with what was running when the page was left. */
        resume: () => store.state.running && follow(store.state.running),
        cancel: async () => {
            if (!store.state.running) return;
            told.progress("Cancelling …", null);
            await api.remove(store.state.running).catch((error) => told.failed(error.message));
        },
    };
}
