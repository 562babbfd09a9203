/** What scripts/build.ts puts into the single executable: the path of the interpreter's module in it. */
declare module "sparkler:interpreter" {
  const path: string;
  export default path;
}
