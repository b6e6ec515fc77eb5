/** The draft survives a reload. */

import { debounced } from "./dom.js";
import { emptyDraft } from "./draft.js";

const DRAFT_KEY = "flux-ext.draft";
const LOOKS_KEY = "flux-ext.looks";
const MOST_LOOKS = 60;

/** Return the saved draft, or `null`. */
export function savedDraft() {
    const saved = read(DRAFT_KEY);
    return saved && typeof saved.model === "string" && Array.isArray(saved.regions)
        ? { ...emptyDraft(), ...saved }
        : null;
}

/** Save the draft soon after each change, and at once when the page is left. */
export function keepSaved(store) {
    const save = () => write(DRAFT_KEY, store.state);
    store.subscribe(debounced(save, 250));
    addEventListener("pagehide", save);
}

/** Remember names and colours of a job's regions, which the job itself does not hold. */
export function rememberLooks(id, looks) {
    const kept = Object.entries(read(LOOKS_KEY) ?? {}).filter(([known]) => known !== id);
    write(LOOKS_KEY, Object.fromEntries([...kept, [id, looks]].slice(-MOST_LOOKS)));
}

/** Return what `rememberLooks` kept. */
export function looksOfJob(id) {
    return read(LOOKS_KEY)?.[id] ?? {};
}

/** Read what is saved under a key; what is broken counts as not there. */
function read(key) {
    try {
        return JSON.parse(localStorage.getItem(key) ?? "null");
    } catch {
        return null;
    }
}

function write(key, value) {
    try {
        localStorage.setItem(key, JSON.stringify(value));
    } catch {
        // A full or forbidden storage costs the reload its memory, nothing else.
    }
}
