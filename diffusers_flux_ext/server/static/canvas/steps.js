/** Undo and redo of what was done to regions. */

import { selectedRegion } from "../core/draft.js";

const MOST_STEPS = 100;

/** @param {ReturnType<typeof import("../core/store.js").createStore>} store */
export function createSteps(store) {
    const snapshot = () => JSON.stringify(store.state.regions);
    let steps = [snapshot()];
    let at = 0;
    const listeners = new Set();
    const tell = () => listeners.forEach((listener) => listener());

    store.subscribe((_, kind) => {
        if (kind !== "reset") return;
        steps = [snapshot()];
        at = 0;
        tell();
    });
    return {
        /** Make what the regions are now a step, if they have changed. */
        record() {
            if (snapshot() === steps[at]) return;
            steps = [...steps.slice(0, at + 1), snapshot()].slice(-MOST_STEPS);
            at = steps.length - 1;
            tell();
        },
        /** Go back (-1) or forth (1) by a step, or to the last one again (0). */
        move(by) {
            if (!steps[at + by]) return;
            at += by;
            store.update((draft) => {
                draft.regions = JSON.parse(steps[at]);
                if (!selectedRegion(draft)) draft.selected = draft.regions.at(-1)?.id ?? null;
            }, "shape");
            tell();
        },
        has: (by) => steps[at + by] !== undefined,
        listen: (listener) => listeners.add(listener),
    };
}
