/** The release of Firecracker whose API this is. Clients ask for it to know what they may send. */
export const API_VERSION = "1.17.0";
