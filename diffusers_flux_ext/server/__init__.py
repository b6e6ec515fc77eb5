"""A server of jobs: a queue, an HTTP API, OpenAI's images API and a page. Needs the extra `serve`."""
