/* As src/main.rs, by other hands: the reference implementation, or libsodium. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifdef SODIUM
int sodium_init(void);
int crypto_pwhash(unsigned char *out, unsigned long long out_len, const char *password, unsigned long long password_len,
                  const unsigned char *salt, unsigned long long passes, size_t memory, int algorithm);

static void prepare(void) {
    if (sodium_init() < 0) exit(1);
}

static void hash(unsigned char out[32]) {
    if (crypto_pwhash(out, 32, "SecurePass123!", 14, (const unsigned char *)"sixteen bytes ok", 2, 19456UL * 1024, 2)) exit(1);
}
#else
#include "argon2.h"

/* Not declared in its header: whether it wipes the memory after each hash. The crate doesn't. */
extern int FLAG_clear_internal_memory;

static uint8_t *memory;

static int keep(uint8_t **given, size_t bytes) {
    if (!memory) memory = aligned_alloc(64, bytes);
    *given = memory;
    return memory ? ARGON2_OK : ARGON2_MEMORY_ALLOCATION_ERROR;
}

static void let_be(uint8_t *given, size_t bytes) {
    (void)given;
    (void)bytes;
}

static void prepare(void) { FLAG_clear_internal_memory = 0; }

static void hash(unsigned char out[32]) {
    argon2_context context = {
        .out = out, .outlen = 32,
        .pwd = (uint8_t *)"SecurePass123!", .pwdlen = 14,
        .salt = (uint8_t *)"sixteen bytes ok", .saltlen = 16,
        .t_cost = 2, .m_cost = 19456, .lanes = 1, .threads = 1,
        .version = ARGON2_VERSION_13,
        .allocate_cbk = keep, .free_cbk = let_be,
    };
    if (argon2id_ctx(&context) != ARGON2_OK) exit(1);
}
#endif

static double spent(void) {
    struct timespec spent;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
    return (double)spent.tv_sec * 1e3 + (double)spent.tv_nsec / 1e6;
}

int main(int argc, char **argv) {
    unsigned char out[32];
    int times = argc > 1 ? atoi(argv[1]) : 0;
    if (times < 1) return 1;
    prepare();
    hash(out);
    double began = spent();
    for (int i = 0; i < times; i++) hash(out);
    printf("%.3f ", (spent() - began) / times);
    for (int i = 0; i < 32; i++) printf("%02x", out[i]);
    printf("\n");
    return 0;
}
