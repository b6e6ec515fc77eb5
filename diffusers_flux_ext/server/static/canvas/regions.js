/** What can be done with the regions of a draft; every step can be undone. */

import { newRegion, selectedRegion } from "../core/draft.js";
import { createSteps } from "./steps.js";

/** @param {ReturnType<typeof import("../core/store.js").createStore>} store */
export function createRegions(store) {
    const steps = createSteps(store);
    const find = (draft, id) => draft.regions.find((each) => each.id === id);
    const change = (act, kind = "shape") => {
        store.update(act, kind);
        steps.record();
    };
    return {
        /** Add a region and select it. Returns its id. */
        add(area = null) {
            const region = newRegion(store.state.regions, area);
            change((draft) => {
                draft.regions.push(region);
                draft.selected = region.id;
            });
            return region.id;
        },
        /**
         * Begin to draw in the selected region if `fits` says so, else in a new one; `settle` makes it a step, and
         * `abandon` takes it back. Returns the region's id.
         */
        begin(area, fits) {
            const selected = selectedRegion(store.state);
            const region = selected && fits(selected.area) ? selected : newRegion(store.state.regions);
            store.update((draft) => {
                if (region !== selected) draft.regions.push(region);
                draft.selected = region.id;
                region.area = area;
            }, "shape");
            return region.id;
        },
        abandon: () => steps.move(0),
        setArea(id, area) {
            change((draft) => (find(draft, id).area = area), "edit");
        },
        /** Show an area while it is drawn; `settle` makes it a step. */
        preview(id, area) {
            store.update((draft) => (find(draft, id).area = area));
        },
        /** Set the name, colour or prompt; `settle` makes it a step. */
        set(id, values) {
            store.update((draft) => Object.assign(find(draft, id), values));
        },
        settle: steps.record,
        remove(id) {
            change((draft) => {
                const index = draft.regions.findIndex((each) => each.id === id);
                draft.regions.splice(index, 1);
                if (draft.selected === id)
                    draft.selected = draft.regions[Math.min(index, draft.regions.length - 1)]?.id ?? null;
            });
        },
        /** Move a region up (-1) or down (1) in the list. */
        reorder(id, by) {
            change((draft) => {
                const index = draft.regions.findIndex((each) => each.id === id);
                const target = index + by;
                if (target < 0 || target >= draft.regions.length) return;
                draft.regions.splice(target, 0, ...draft.regions.splice(index, 1));
            });
        },
        select(id) {
            if (store.state.selected !== id) store.update((draft) => (draft.selected = id));
        },
        undo: () => steps.move(-1),
        redo: () => steps.move(1),
        canUndo: () => steps.has(-1),
        canRedo: () => steps.has(1),
        onSteps: steps.listen,
    };
}
