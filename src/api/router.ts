/** From an HTTP request to its answer: finds the route, checks, does it, and words what went wrong. */

import { isUtf8 } from "node:buffer";
import { parseJson } from "../vmm/schema/validate.ts";
import { ApiError, badBody, isRefusal, notSupported, wrongMoment } from "./errors.ts";
import type { HttpRequest } from "./http/request.ts";
import { fault, type HttpResponse } from "./http/response.ts";
import type { Api, Method, Route } from "./route.ts";
import { ROUTES } from "./routes.ts";

const RESOURCE_ID = /^[\p{L}\p{N}_]+$/u;
const METHOD_NAMES: Readonly<Record<Method, string>> = {
  GET: "Get",
  PUT: "Put",
  PATCH: "Patch",
  DELETE: "Delete",
};

interface Match {
  readonly route: Route;
  /** From the path; undefined if the route has none or the path lacks it. */
  readonly id: string | undefined;
}

export class Router {
  constructor(private readonly api: Api) {}

  /** Never throws. */
  handle(request: HttpRequest): HttpResponse | Promise<HttpResponse> {
    const { logger } = this.api.instance.options.log;
    const text = Buffer.from(request.body).toString("utf8");
    logger.info(`The API server received a ${describe(request, text)}.`);
    const answer = (response: HttpResponse) => this.answered(response);
    let response: HttpResponse | Promise<HttpResponse>;
    try {
      response = this.dispatch(request, text);
    } catch (error) {
      return answer(this.failed(error, undefined));
    }
    return response instanceof Promise ? response.then(answer) : answer(response);
  }

  private dispatch(request: HttpRequest, text: string): HttpResponse | Promise<HttpResponse> {
    const { route, id } = findRoute(request);
    const { metrics, log } = this.api.instance.options;
    this.count(route, "count");
    let deprecated = false;
    const failed = (error: unknown): HttpResponse => {
      this.count(route, "fails");
      return { ...this.failed(error, route), deprecated };
    };
    const done = (result: unknown): HttpResponse =>
      route.response === undefined
        ? { status: 204, deprecated }
        : { status: 200, body: JSON.stringify(result), deprecated };
    try {
      if (id !== undefined) checkId(id);
      const call = route.prepare(parseBody(route, request.body, text), id ?? "", text);
      if (call.id !== (id ?? "") && id !== undefined) {
        throw new ApiError("The id from the path does not match the id from the body!");
      }
      if (call.deprecated !== undefined) {
        deprecated = true;
        metrics.add("deprecated_api", "deprecated_http_api_calls");
        log.logger.warn(call.deprecated);
      }
      const started = this.api.instance.state !== "Not started";
      if (route.when !== "both" && started !== (route.when === "post")) throw wrongMoment(route.when);
      if (call.unsupported !== undefined) throw notSupported(call.unsupported);
      const result = call.run(this.api);
      return result instanceof Promise ? result.then(done, failed) : done(result);
    } catch (error) {
      return failed(error);
    }
  }

  private count(route: Route, what: "count" | "fails"): void {
    if (route.metric === undefined) return;
    if (route.method === "GET" && what === "fails") return;
    const group = `${route.method.toLowerCase()}_api_requests`;
    this.api.instance.options.metrics.add(group, `${route.metric}_${what}`);
  }

  private failed(error: unknown, route: Route | undefined): HttpResponse {
    if (error instanceof ApiError) return fault(error.status, error.message);
    const message = error instanceof Error ? error.message : String(error);
    if (isRefusal(error)) {
      return fault(400, route?.failure === undefined ? message : `${route.failure}: ${message}`);
    }
    const stack = error instanceof Error ? error.stack : undefined;
    this.api.instance.options.log.logger.error(
      `A request failed by a fault of the monitor: ${stack ?? message}`,
    );
    return fault(500, `The monitor failed to do this: ${message}`);
  }

  private answered(response: HttpResponse): HttpResponse {
    const { logger } = this.api.instance.options.log;
    if (response.status === 200) logger.info("The request was executed successfully. Status code: 200 OK.");
    else if (response.status === 204) {
      logger.info("The request was executed successfully. Status code: 204 No Content.");
    } else logger.error(`Received Error. Status code: ${response.status}. Message: ${response.body}`);
    return response;
  }
}

function describe({ method, path }: HttpRequest, body: string): string {
  const request = `${isMethod(method) ? METHOD_NAMES[method] : method} request on ${JSON.stringify(path)}`;
  // Metadata may hold secrets.
  return body === "" || path.startsWith("/mmds") ? request : `${request} with body ${JSON.stringify(body)}`;
}

function isMethod(method: string): method is Method {
  return Object.hasOwn(METHOD_NAMES, method);
}

/** In the order in which Firecracker looks: the method, whether there is a body, the path, the id. */
function findRoute({ method, path, body }: HttpRequest): Match {
  if (!isMethod(method)) throw new ApiError("Invalid HTTP Method: Unsupported HTTP method.");
  const segments = path
    .split("/")
    .filter((segment, i, all) => segment !== "" || (i > 0 && i < all.length - 1));
  const match = ROUTES.filter((route) => route.method === method).flatMap((route) => {
    const id = matchPath(route.path, segments);
    return id === false ? [] : [{ route, id }];
  })[0];
  if (method === "GET" && body.length > 0) throw new ApiError("GET request cannot have a body.");
  if ((method === "PUT" || method === "PATCH") && body.length === 0 && match?.route.bodyOptional !== true) {
    throw new ApiError(`Empty ${method} request.`);
  }
  if (match === undefined || (method === "DELETE" && body.length > 0)) {
    throw new ApiError(`Invalid request method and/or path: ${method} ${segments[0] ?? ""}.`);
  }
  return match;
}

/** The id in the path ("" if it is left out), undefined if the route has none, false if the path is another. */
function matchPath(pattern: string, segments: readonly string[]): string | undefined | false {
  const wanted = pattern.split("/").slice(1);
  const fixed = wanted.filter((segment) => segment !== "" && !segment.startsWith("{"));
  if (fixed.some((segment, i) => segment !== segments[i])) return false;
  if (fixed.length === wanted.length || pattern === "/") {
    return segments.length === fixed.length ? undefined : false;
  }
  if (segments.length > wanted.length) return false;
  return segments[fixed.length] ?? "";
}

function checkId(id: string): void {
  if (id === "") throw new ApiError("The ID cannot be empty.");
  if (!RESOURCE_ID.test(id)) {
    throw new ApiError("API Resource IDs can only contain alphanumeric characters and underscores.");
  }
}

function parseBody(route: Route, bytes: Uint8Array, text: string): unknown {
  if (!isUtf8(bytes)) throw badBody("invalid unicode code point");
  if (text === "") return route.body === undefined ? undefined : {};
  try {
    return parseJson(text);
  } catch (error) {
    throw badBody(error instanceof Error ? error.message : String(error));
  }
}
