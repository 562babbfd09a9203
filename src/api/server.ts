/** Puts the API on its socket. */

import { HttpServer } from "./http/server.ts";
import type { Api } from "./route.ts";
import { Router } from "./router.ts";

export interface ApiServerOptions {
  /** Path of the unix socket to make. */
  readonly path: string;
  /** Largest request body in bytes. */
  readonly maxBody: number;
  readonly api: Api;
  /** Requests wait for this: a machine that is being built from a configuration file. */
  readonly ready?: Promise<unknown>;
}

/** Answers from now on. Throws `ApiSocketError` if the socket cannot be made. */
export function serveApi({ path, maxBody, api, ready }: ApiServerOptions): HttpServer {
  const router = new Router(api);
  let waiting = ready !== undefined;
  ready?.then(
    () => {
      waiting = false;
    },
    () => {},
  );
  return new HttpServer({
    path,
    maxBody,
    handle: (request) => (waiting ? ready!.then(() => router.handle(request)) : router.handle(request)),
  });
}
