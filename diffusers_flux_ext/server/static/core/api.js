/** The server's HTTP API. */

/** @typedef {{field: string, message: string}} Problem */

/** An answer that is an error, with the fields it concerns. */
export class ApiError extends Error {
    /**
     * @param {string} message
     * @param {number} status
     * @param {Problem[]} problems
     */
    constructor(message, status, problems) {
        super(message);
        this.status = status;
        this.problems = problems;
    }
}

const CLIENT_KEY = "flux-ext.client";

/** Name this browser to the queue, which is fair between clients. */
function clientId() {
    const known = localStorage.getItem(CLIENT_KEY);
    if (known) return known;
    const made = [...crypto.getRandomValues(new Uint8Array(12))]
        .map((byte) => byte.toString(16).padStart(2, "0"))
        .join("");
    localStorage.setItem(CLIENT_KEY, made);
    return made;
}

async function call(path, options = {}) {
    let answer;
    try {
        answer = await fetch(path, { ...options, headers: { "X-Client-Id": clientId(), ...options.headers } });
    } catch {
        throw new ApiError("The server does not answer. Is it still running?", 0, []);
    }
    if (!answer.ok) throw await errorOf(answer);
    return answer.status === 204 ? null : answer.json();
}

/** @param {Response} answer */
async function errorOf(answer) {
    const error = await answer.json().then(
        (body) => body.error ?? {},
        () => ({}),
    );
    const wait = answer.headers.get("Retry-After");
    const message = error.message ?? `The server answered ${answer.status}.`;
    return new ApiError(
        answer.status === 429 && wait ? `${message} Try again in ${wait} s.` : message,
        answer.status,
        error.problems?.length ? error.problems : error.field ? [{ field: error.field, message }] : [],
    );
}

const json = (method, body) => ({
    method,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
});

export const api = {
    schema: () => call("/api/schema"),
    options: () => call("/api/options"),
    jobs: (limit) => call(`/api/jobs?limit=${limit}`),
    job: (id) => call(`/api/jobs/${encodeURIComponent(id)}`),
    submit: (job) => call("/api/jobs", json("POST", job)),
    remove: (id) => call(`/api/jobs/${encodeURIComponent(id)}`, { method: "DELETE" }),
    /** @param {Blob} blob @param {string} type */
    upload: (blob, type) => call("/api/uploads", { method: "POST", headers: { "Content-Type": type }, body: blob }),
    /**
     * Follow a job; the browser reconnects by itself and names the last event it has seen.
     * @param {string} id
     * @param {Record<string, (data: any) => void>} handlers by event; `lost` runs when the stream cannot be opened.
     * @returns {() => void} ends it
     */
    follow(id, handlers) {
        const source = new EventSource(`/api/jobs/${encodeURIComponent(id)}/events`);
        for (const [event, handle] of Object.entries(handlers)) {
            source.addEventListener(event, (message) => handle(message.data ? JSON.parse(message.data) : {}));
        }
        source.addEventListener("error", () => source.readyState === EventSource.CLOSED && handlers.lost?.({}));
        return () => source.close();
    },
};
