/* Stands for libcublasLt: NVIDIA's entry points over host memory, for tests without a GPU.
 *
 * It refuses what the real library refuses or would misread on the GPU, records every product, and computes in
 * double. The reason of the last refusal is in `complaint`. Tests set `settings` and read `products`. */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_32F_FAST_TF32 = 77 };
enum { DEFAULT = 1, RELU = 2, BIAS = 4, GELU = 32, BGRADA = 256, BGRADB = 512 };
enum { HANDLE = 0x4c41, DESCRIPTION, LAYOUT, PREFERENCE, DESTROYED, ALGORITHM };

typedef struct { int kind, device; } Handle;
typedef struct { int kind; int32_t compute, scale, transa, transb; uint32_t epilogue; void *bias; } Description;
typedef struct { int kind; int32_t type; uint64_t rows, cols; int64_t ld; } Layout;
typedef struct { int kind; uint32_t reductions; uint64_t workspace; uint32_t alignment[4]; } Preference;
typedef struct { uint64_t data[8]; } Algorithm;
typedef struct { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; } Result;

typedef struct {
  int candidates;         /* how many algorithms the heuristic finds at most */
  int unfit;              /* how many of them, from the first on, it marks as not supported */
  uint64_t workspace;     /* bytes that candidate i needs: workspace + 256 * i, or 0 if this is 0 */
  uint32_t refused;       /* epilogues, ored, that no algorithm has */
  int status;             /* what the next call of `function` answers; 0: nothing special */
  char function[40];
  int (*device)(void);    /* the current device */
  int (*capturing)(void); /* whether the current stream is captured */
} Settings;

typedef struct {
  uint64_t m, n, k, workspace, bias, handle;
  uint64_t stream, scratch;
  int32_t transa, transb, type, compute, scale, device;
  uint32_t epilogue, candidate;
} Product;

enum { MOST = 4096 };
Settings settings;
Preference asked; /* the preferences of the last question to the heuristic */
Product products[MOST];
int product_count, live;
char complaint[200];
static char names[MOST][40];
static int called;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int refuse(int status, const char *why) {
  snprintf(complaint, sizeof complaint, "%s", why);
  return status;
}
#define CHECK(condition) do { if (!(condition)) return refuse(INVALID_VALUE, #condition); } while (0)

static int enter(const char *name) {
  int status = 0;
  pthread_mutex_lock(&lock);
  if (called < MOST) snprintf(names[called++], sizeof names[0], "%s", name);
  if (settings.status && !strcmp(settings.function, name)) {
    status = settings.status;
    settings.status = 0;
  }
  pthread_mutex_unlock(&lock);
  return status;
}
#define ENTER(name) do { int failed = enter(name); if (failed) return failed; } while (0)

int calls_of(const char *name) {
  int found = 0;
  for (int i = 0; i < called; i++) found += !strcmp(names[i], name);
  return found;
}

void reset(void) {
  memset(&settings, 0, sizeof settings);
  settings.candidates = 3;
  product_count = called = 0;
  complaint[0] = 0;
}

static int current_device(void) { return settings.device ? settings.device() : 0; }

size_t cublasLtGetVersion(void) { return 120901; }

const char *cublasLtGetStatusName(int status) {
  switch (status) {
    case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "unrecognized status";
  }
}

int cublasLtCreate(Handle **handle) {
  ENTER("Create");
  *handle = calloc(1, sizeof **handle);
  (*handle)->kind = HANDLE;
  (*handle)->device = current_device();
  return SUCCESS;
}

/* Objects are never freed, so that the use of a destroyed one is seen. */
static void *create(int kind, size_t size) {
  int *object = calloc(1, size);
  *object = kind;
  __sync_fetch_and_add(&live, 1);
  return object;
}

static int destroy(int *object, int kind) {
  CHECK(object && *object == kind);
  *object = DESTROYED;
  __sync_fetch_and_sub(&live, 1);
  return SUCCESS;
}

int cublasLtMatmulDescCreate(Description **description, int compute, int scale) {
  ENTER("MatmulDescCreate");
  CHECK(compute == COMPUTE_32F || compute == COMPUTE_64F || compute == COMPUTE_32F_FAST_TF32);
  CHECK(scale == (compute == COMPUTE_64F ? R_64F : R_32F));
  *description = create(DESCRIPTION, sizeof **description);
  (*description)->compute = compute;
  (*description)->scale = scale;
  (*description)->epilogue = DEFAULT;
  return SUCCESS;
}

int cublasLtMatmulDescDestroy(Description *description) {
  ENTER("MatmulDescDestroy");
  return destroy((int *)description, DESCRIPTION);
}

static int copy(void *target, size_t size, const void *source, size_t given) {
  CHECK(source && size == given);
  memcpy(target, source, size);
  return SUCCESS;
}

int cublasLtMatmulDescSetAttribute(Description *description, int attribute, const void *value, size_t size) {
  ENTER("MatmulDescSetAttribute");
  CHECK(description && description->kind == DESCRIPTION);
  switch (attribute) {
    case 3: return copy(&description->transa, 4, value, size);
    case 4: return copy(&description->transb, 4, value, size);
    case 7: return copy(&description->epilogue, 4, value, size);
    case 8: return copy(&description->bias, 8, value, size);
    default: return refuse(INVALID_VALUE, "an attribute of the description that the stand-in does not know");
  }
}

int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  ENTER("MatrixLayoutCreate");
  *layout = create(LAYOUT, sizeof **layout);
  (*layout)->type = type;
  (*layout)->rows = rows;
  (*layout)->cols = cols;
  (*layout)->ld = ld;
  return SUCCESS;
}

int cublasLtMatrixLayoutDestroy(Layout *layout) {
  ENTER("MatrixLayoutDestroy");
  return destroy((int *)layout, LAYOUT);
}

int cublasLtMatmulPreferenceCreate(Preference **preference) {
  ENTER("MatmulPreferenceCreate");
  *preference = create(PREFERENCE, sizeof **preference);
  (*preference)->reductions = 7;
  for (int i = 0; i < 4; i++) (*preference)->alignment[i] = 256;
  return SUCCESS;
}

int cublasLtMatmulPreferenceDestroy(Preference *preference) {
  ENTER("MatmulPreferenceDestroy");
  return destroy((int *)preference, PREFERENCE);
}

int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value, size_t size) {
  ENTER("MatmulPreferenceSetAttribute");
  CHECK(preference && preference->kind == PREFERENCE);
  if (attribute == 1) return copy(&preference->workspace, 8, value, size);
  if (attribute == 3) return copy(&preference->reductions, 4, value, size);
  if (attribute >= 5 && attribute <= 8) return copy(&preference->alignment[attribute - 5], 4, value, size);
  return refuse(INVALID_VALUE, "an attribute of the preferences that the stand-in does not know");
}

/* What one value of `epilogue` may be, and whether the layouts are those of op(A) op(B) = C = D. */
static int check_problem(Handle *handle, Description *d, Layout *a, Layout *b, Layout *c, Layout *out) {
  Layout *all[] = {a, b, c, out};
  CHECK(handle && handle->kind == HANDLE);
  CHECK(handle->device == current_device());
  CHECK(d && d->kind == DESCRIPTION);
  CHECK((d->transa | d->transb | 1) == 1);
  uint32_t epilogues[] = {DEFAULT, RELU, BIAS, RELU | BIAS, GELU, GELU | BIAS, BGRADA, BGRADB};
  int known = 0;
  for (int i = 0; i < 8; i++) known |= d->epilogue == epilogues[i];
  CHECK(known);
  for (int i = 0; i < 4; i++) {
    CHECK(all[i] && all[i]->kind == LAYOUT);
    CHECK(all[i]->rows && all[i]->cols);
    CHECK(all[i]->ld >= (int64_t)all[i]->rows);
    CHECK(all[i]->type == a->type);
  }
  CHECK(a->type == R_32F || a->type == R_64F || a->type == R_16F || a->type == R_16BF);
  CHECK((a->type == R_64F) == (d->compute == COMPUTE_64F));
  CHECK(d->compute != COMPUTE_32F_FAST_TF32 || a->type == R_32F);
  CHECK(out->rows == (d->transa ? a->cols : a->rows));
  CHECK(out->cols == (d->transb ? b->rows : b->cols));
  CHECK((d->transa ? a->rows : a->cols) == (d->transb ? b->cols : b->rows));
  CHECK(c->rows == out->rows && c->cols == out->cols);
  return SUCCESS;
}

static uint64_t mix(uint64_t hash, uint64_t value) { return (hash ^ value) * 0x100000001b3u; }

static uint64_t hash_problem(Handle *handle, Description *d, Layout *a, Layout *b, Layout *out) {
  Layout *all[] = {a, b, out};
  uint64_t hash = mix(mix(mix(mix(mix(14695981039346656037u, d->compute), d->transa), d->transb), d->epilogue),
                      handle->device);
  for (int i = 0; i < 3; i++)
    hash = mix(mix(mix(mix(hash, all[i]->type), all[i]->rows), all[i]->cols), all[i]->ld);
  return hash;
}

int cublasLtMatmulAlgoGetHeuristic(Handle *handle, Description *d, Layout *a, Layout *b, Layout *c, Layout *out,
                                   Preference *preference, int wanted, Result *results, int *found) {
  ENTER("MatmulAlgoGetHeuristic");
  int status = check_problem(handle, d, a, b, c, out);
  if (status) return status;
  CHECK(preference && preference->kind == PREFERENCE);
  CHECK(wanted > 0 && results && found);
  for (int i = 0; i < 4; i++) CHECK(preference->alignment[i] && preference->alignment[i] % 2 == 0);
  if (settings.capturing && settings.capturing()) return refuse(INTERNAL_ERROR, "the heuristic in a capture");
  asked = *preference;
  *found = 0;
  if (d->epilogue != DEFAULT && d->epilogue & settings.refused) return NOT_SUPPORTED;
  if (a->type == R_64F && d->epilogue != DEFAULT && d->epilogue != BIAS) return NOT_SUPPORTED;
  memset(results, 0xAB, wanted * sizeof *results);
  for (int i = 0; i < wanted && i < settings.candidates; i++) {
    uint64_t workspace = settings.workspace ? settings.workspace + 256 * i : 0;
    if (workspace > preference->workspace) break;
    Result *result = &results[(*found)++];
    uint64_t *alignment = &result->algorithm.data[4];
    for (int j = 0; j < 4; j++) alignment[j] = preference->alignment[j];
    result->algorithm.data[0] = ALGORITHM;
    result->algorithm.data[1] = i;
    result->algorithm.data[2] = hash_problem(handle, d, a, b, out);
    result->algorithm.data[3] = workspace;
    result->workspace = workspace;
    result->state = i < settings.unfit ? NOT_SUPPORTED : SUCCESS;
    result->waves = 1.0f + i;
  }
  return SUCCESS;
}

/* 16-bit floats: the sign, exponents biased by `bias`, and `fraction` bits. */
static double unpack(uint16_t bits, int fraction, int bias) {
  int exponent = (bits & 0x7fff) >> fraction, most = 0x7fff >> fraction;
  double rest = bits & ((1 << fraction) - 1), sign = bits >> 15 ? -1 : 1;
  if (exponent == most) return rest ? NAN : sign * INFINITY;
  if (exponent) rest += 1 << fraction;
  return sign * ldexp(rest, (exponent ? exponent : 1) - bias - fraction);
}

static uint16_t pack(double value, int fraction, int bias) {
  uint16_t sign = signbit(value) ? 0x8000 : 0, infinity = 0x7fff >> fraction << fraction;
  int exponent;
  if (isnan(value)) return 0x7fff;
  if (value == 0) return sign;
  if (isinf(value)) return sign | infinity;
  frexp(value, &exponent);
  exponent = exponent - 1 < 1 - bias ? 1 - bias : exponent - 1;
  double bits = ldexp((double)(exponent + bias - 1), fraction) + nearbyint(ldexp(fabs(value), fraction - exponent));
  return sign | (bits >= infinity ? infinity : (uint16_t)bits);
}

static double load(const void *data, int type, uint64_t i) {
  if (type == R_64F) return ((const double *)data)[i];
  if (type == R_32F) return ((const float *)data)[i];
  uint16_t bits = ((const uint16_t *)data)[i];
  return type == R_16F ? unpack(bits, 10, 15) : unpack(bits, 7, 127);
}

static void store(void *data, int type, uint64_t i, double value) {
  if (type == R_64F) ((double *)data)[i] = value;
  else if (type == R_32F) ((float *)data)[i] = (float)value;
  else ((uint16_t *)data)[i] = type == R_16F ? pack(value, 10, 15) : pack(value, 7, 127);
}

static double rounded(double value, int compute) {
  int exponent;
  if (compute != COMPUTE_32F_FAST_TF32 || value == 0 || !isfinite(value)) return value;
  double mantissa = frexp(value, &exponent);
  return ldexp(nearbyint(ldexp(mantissa, 11)), exponent - 11); /* TF32 has 11 bits, the first implied */
}

static double element(const void *data, Layout *layout, int transposed, uint64_t row, uint64_t col) {
  return load(data, layout->type, transposed ? col + row * layout->ld : row + col * layout->ld);
}

static void sum(Description *d, const void *data, Layout *layout, uint64_t length, uint64_t k, int of_b) {
  for (uint64_t i = 0; i < length; i++) {
    double total = 0;
    for (uint64_t l = 0; l < k; l++)
      total += of_b ? element(data, layout, d->transb, l, i) : element(data, layout, d->transa, i, l);
    store(d->bias, layout->type, i, total);
  }
}

static void compute(Description *d, double alpha, const void *A, Layout *a, const void *B, Layout *b, double beta,
                    const void *C, Layout *c, void *D, Layout *out) {
  uint64_t k = d->transa ? a->rows : a->cols;
  for (uint64_t row = 0; row < out->rows; row++)
    for (uint64_t col = 0; col < out->cols; col++) {
      double x = 0;
      for (uint64_t l = 0; l < k; l++)
        x += rounded(element(A, a, d->transa, row, l), d->compute) * rounded(element(B, b, d->transb, l, col), d->compute);
      x = alpha * x + (beta ? beta * element(C, c, 0, row, col) : 0);
      if (d->epilogue & BIAS) x += load(d->bias, out->type, row);
      if (d->epilogue & RELU) x = x > 0 ? x : 0;
      if (d->epilogue & GELU) x = 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
      store(D, out->type, row + col * out->ld, x);
    }
  if (d->epilogue == BGRADA) sum(d, A, a, out->rows, k, 0);
  if (d->epilogue == BGRADB) sum(d, B, b, out->cols, k, 1);
}

int cublasLtMatmul(Handle *handle, Description *d, const void *alpha, const void *A, Layout *a, const void *B,
                   Layout *b, const void *beta, const void *C, Layout *c, void *D, Layout *out,
                   const Algorithm *algorithm, void *workspace, size_t bytes, void *stream) {
  ENTER("Matmul");
  int status = check_problem(handle, d, a, b, c, out);
  if (status) return status;
  const void *pointers[] = {A, B, C, D};
  CHECK(algorithm && algorithm->data[0] == ALGORITHM);
  CHECK(algorithm->data[2] == hash_problem(handle, d, a, b, out));
  CHECK(bytes >= algorithm->data[3]);
  CHECK(!bytes || (workspace && (uintptr_t)workspace % 16 == 0));
  CHECK(alpha && beta);
  for (int i = 0; i < 4; i++) {
    CHECK(pointers[i]);
    CHECK((uintptr_t)pointers[i] % algorithm->data[4 + i] == 0);
  }
  int vector = d->epilogue & (BIAS | BGRADA | BGRADB);
  CHECK(!vector || (uintptr_t)d->bias > 4096);
  CHECK(!vector || (uintptr_t)d->bias % algorithm->data[4] == 0);
  CHECK(D != A && D != B);
  if (bytes) memset(workspace, 0xCD, bytes);
  double one = load(alpha, d->scale, 0), zero = load(beta, d->scale, 0);
  compute(d, one, A, a, B, b, zero, C, c, D, out);
  pthread_mutex_lock(&lock);
  if (product_count < MOST)
    products[product_count++] = (Product){
        out->rows, out->cols, d->transa ? a->rows : a->cols, bytes, (uint64_t)(vector ? d->bias : 0),
        (uint64_t)handle, (uint64_t)stream, (uint64_t)workspace, d->transa, d->transb, a->type, d->compute, d->scale,
        handle->device, d->epilogue, (uint32_t)algorithm->data[1]};
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}
