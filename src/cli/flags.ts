/** Firecracker's flags, as this program knows them. The help text and the compatibility table come from here. */

export interface Flag {
  /** Without the dashes. */
  readonly name: string;
  /** What follows it, or "". */
  readonly argument: string;
  readonly text: string;
  /** `ignored`: accepted, there is nothing for it to change. `refused`: it would change what is done. */
  readonly support: "yes" | "ignored" | "refused";
  readonly default?: string;
}

export const DEFAULT_API_SOCKET = "/run/firecracker.socket";
export const DEFAULT_MAX_PAYLOAD = 51_200;

export const FIRECRACKER_FLAGS: readonly Flag[] = [
  {
    name: "api-sock",
    argument: "<path>",
    text: `socket of the API server (default: ${DEFAULT_API_SOCKET})`,
    support: "yes",
  },
  {
    name: "id",
    argument: "<id>",
    text: "name of the microVM",
    support: "yes",
    default: "anonymous-instance",
  },
  {
    name: "config-file",
    argument: "<file>",
    text: "machine configuration in Firecracker's format (JSON); the guest starts at once",
    support: "yes",
  },
  {
    name: "no-api",
    argument: "",
    text: "no API server: the machine comes from --config-file",
    support: "yes",
  },
  { name: "metadata", argument: "<file>", text: "JSON to put into the metadata service", support: "yes" },
  {
    name: "log-path",
    argument: "<file>",
    text: "file or FIFO for the log (default: stderr)",
    support: "yes",
  },
  {
    name: "level",
    argument: "<level>",
    text: "log level: Off, Error, Warning, Info, Debug or Trace",
    support: "yes",
  },
  { name: "show-level", argument: "", text: "show the level in log lines", support: "yes" },
  { name: "show-log-origin", argument: "", text: "show file and line in log lines", support: "yes" },
  { name: "metrics-path", argument: "<file>", text: "file or FIFO for the metrics", support: "yes" },
  {
    name: "boot-timer",
    argument: "",
    text: "log when the guest's init writes to the boot timer",
    support: "yes",
  },
  {
    name: "http-api-max-payload-size",
    argument: "<bytes>",
    text: "largest body of an API request",
    support: "yes",
    default: String(DEFAULT_MAX_PAYLOAD),
  },
  {
    name: "mmds-size-limit",
    argument: "<bytes>",
    text: "largest metadata (default: that of a request body)",
    support: "yes",
  },
  {
    name: "start-time-us",
    argument: "<us>",
    text: "monotonic time at which this process was started, for the metrics",
    support: "yes",
  },
  {
    name: "start-time-cpu-us",
    argument: "<us>",
    text: "CPU time of this process at its start, for the metrics",
    support: "yes",
  },
  {
    name: "parent-cpu-time-us",
    argument: "<us>",
    text: "CPU time that its parent used for it, for the metrics",
    support: "yes",
  },
  { name: "no-seccomp", argument: "", text: "accepted: there is no filter", support: "ignored" },
  { name: "seccomp-filter", argument: "<file>", text: "not supported yet", support: "refused" },
  { name: "module", argument: "<name>", text: "not supported yet", support: "refused" },
  { name: "enable-pci", argument: "", text: "not supported yet", support: "refused" },
  { name: "snapshot-version", argument: "", text: "not supported yet", support: "refused" },
  { name: "describe-snapshot", argument: "<file>", text: "not supported yet", support: "refused" },
];
