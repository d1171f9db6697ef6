// What the page of all requests can do: each part is a module of its own.
import { followContents } from "./contents.js";
import { search } from "./search.js";
import { offerToTry } from "./try.js";

followContents();
search();
offerToTry();
