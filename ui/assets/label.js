// The judging page in the browser: see judge/main.js. A classic script, so that the page's head needs to know no more than this file.
import("/assets/judge/main.js");
