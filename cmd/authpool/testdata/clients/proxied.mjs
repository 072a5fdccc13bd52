// Has fetch heed HTTPS_PROXY, which Node does by itself from 24 on (and 22.21) with
// NODE_USE_ENV_PROXY: node --import ./proxied.mjs PROGRAM
import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";

if (process.env.HTTPS_PROXY) setGlobalDispatcher(new EnvHttpProxyAgent());
