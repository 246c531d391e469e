/* Seeds the OpenSSL of the program that loads it anew from the kernel: Node has no call for that.
 *
 *   cc -shared -fPIC -nostdlib -O2 -o reseed.node reseed.c
 *
 * It needs no libc, so one build serves glibc and musl. Node calls the function at every process.dlopen.
 */
extern void RAND_seed(const void *salt, int length);

void *napi_register_module_v1(void *env, void *exports)
{
	static const char salt[] = "thawbox";

	(void)env;
	RAND_seed(salt, sizeof(salt));
	return exports;
}
