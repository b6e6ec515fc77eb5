/** The first region brings the LoRA that teaches a model to follow regions, if the server offers one. */

const TEACHES_REGIONS = /eligen/i;

/**
 * @param {any} store
 * @param {import("../core/catalog.js").Catalog} catalog
 * @param {(text: string) => void} say
 */
export function suggestLora(store, catalog, say) {
    const lora = (catalog.options.loras ?? []).find((each) => TEACHES_REGIONS.test(each.name));
    store.subscribe((draft) => {
        if (!lora || draft.suggested || !draft.regions.length) return;
        store.update((next) => {
            next.suggested = true;
            if (!next.loras.length) next.loras.push({ name: lora.name, weight: lora.weight ?? 1 });
        }, "shape");
        say(`The LoRA ${lora.name} was added: it teaches the model to follow regions.`);
    });
}
