// What the GPU does around the network: camera pixels to noise units, tiles out of the frame, results back into it.
// Compiled to kernels.ptx by `make ptx`; the tests compile this same file for the processor and compare it with NumPy.
// Every kernel walks its elements with a stride of the whole grid, so any grid is right.

#define BEGIN (blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x)
#define STRIDE (gridDim.x * (unsigned long long)blockDim.x)

// What one look at every pixel finds, as `spikes.survey` on the processor does: the sum of the finite pixels (of each
// thread, in totals), and a list of places, their number in *found: of pixels that are not finite, marked in the
// highest bit, and of those that may be spikes. A place beyond the list's room is counted but not written.
template <typename T>
static __device__ float counts_at(const T *pixels, long long height, long long width, long long y, long long x,
                                  double offset, double inverse_gain)
{
    if (y < 0 || x < 0 || y >= height || x >= width)
        return 0.0f;
    float counts = (float)(((double)pixels[y * width + x] - offset) * inverse_gain);
    return counts > 0.0f && counts - counts == 0.0f ? counts : 0.0f;
}

template <typename T>
static __device__ void look(const T *pixels, long long height, long long width, double offset, double inverse_gain,
                            float limit, float least, unsigned long long room, unsigned long long *found,
                            double *totals, unsigned long long *list)
{
    double total = 0.0;
    for (unsigned long long i = BEGIN; i < (unsigned long long)(height * width); i += STRIDE) {
        float counts = (float)(((double)pixels[i] - offset) * inverse_gain);
        bool finite = counts - counts == 0.0f;
        bool suspect = !finite;
        if (finite) {
            total += (double)pixels[i];
            if (counts >= least) {
                long long y = (long long)i / width, x = (long long)i % width;
                float around = 0.0f;
                for (long long dy = -1; dy <= 1; dy++)
                    for (long long dx = -1; dx <= 1; dx++)
                        if (dy || dx)
                            around += counts_at(pixels, height, width, y + dy, x + dx, offset, inverse_gain);
                float mean = around / 8.0f, excess = counts - mean;
                suspect = excess > 0.0f && excess * excess >= limit * (counts / 8.0f + mean);
            }
        }
        if (suspect) {
            unsigned long long index = atomicAdd(found, 1ULL);
            if (index < room)
                list[index] = finite ? i : i | 1ULL << 63;
        }
    }
    totals[BEGIN] = total;
}

#define SURVEY(NAME, T)                                                                                          \
    extern "C" __global__ void NAME(const T *pixels, long long height, long long width, double offset,           \
                                    double inverse_gain, float limit, float least, unsigned long long room,      \
                                    unsigned long long *found, double *totals, unsigned long long *list)         \
    {                                                                                                            \
        look(pixels, height, width, offset, inverse_gain, limit, least, room, found, totals, list);              \
    }

SURVEY(survey_u1, unsigned char)
SURVEY(survey_i1, signed char)
SURVEY(survey_u2, unsigned short)
SURVEY(survey_i2, short)
SURVEY(survey_u4, unsigned int)
SURVEY(survey_i4, int)
SURVEY(survey_f4, float)
SURVEY(survey_f8, double)

// units = (pixel - zero) / unit. In double, where neighbouring 32-bit integers can be told apart.
template <typename T>
static __device__ void to_units(const T *pixels, float *units, unsigned long long count, double zero, double inverse)
{
    for (unsigned long long i = BEGIN; i < count; i += STRIDE)
        units[i] = (float)(((double)pixels[i] - zero) * inverse);
}

#define SCALE(NAME, T)                                                                                           \
    extern "C" __global__ void NAME(const T *pixels, float *units, unsigned long long count, double zero,        \
                                    double inverse)                                                              \
    {                                                                                                            \
        to_units(pixels, units, count, zero, inverse);                                                           \
    }

SCALE(scale_u1, unsigned char)
SCALE(scale_i1, signed char)
SCALE(scale_u2, unsigned short)
SCALE(scale_i2, short)
SCALE(scale_u4, unsigned int)
SCALE(scale_i4, int)
SCALE(scale_f4, float)
SCALE(scale_f8, double)

// Spikes: what the network sees in place of pixels no electron put there, in units.
extern "C" __global__ void fill(float *units, const unsigned long long *places, const float *values,
                                unsigned long long count)
{
    for (unsigned long long i = BEGIN; i < count; i += STRIDE)
        units[places[i]] = values[i];
}

// numpy.pad's "reflect", as often as it takes: the edge pixel is not repeated.
static __device__ long long reflected(long long index, long long size)
{
    if (index >= 0 && index < size)
        return index;
    long long period = 2 * (size - 1);
    index = index % period;
    if (index < 0)
        index += period;
    return index < size ? index : period - index;
}

// A tile (rows, columns) whose first pixel is (row, column) of the frame; `add` and `multiply` scale it once more.
extern "C" __global__ void gather(const float *units, long long height, long long width, float *tile, long long rows,
                                  long long columns, long long row, long long column, float add, float multiply)
{
    // A tile's pixels are counted in 32 bits, which divide many times faster.
    for (unsigned i = BEGIN; i < (unsigned)(rows * columns); i += STRIDE) {
        long long y = reflected(row + i / (unsigned)columns, height);
        long long x = reflected(column + i % (unsigned)columns, width);
        tile[i] = (units[y * width + x] + add) * multiply;
    }
}

// The part (first_row.. first_row + rows, ...) of a tile's result, `pitch` pixels wide, into the frame, in the camera's units. Where
// neighbours cross-fade there are weights, one for every row and column of that part, and the frame starts at zero.
extern "C" __global__ void scatter(const float *result, long long pitch, long long first_row, long long first_column,
                                   long long rows, long long columns, const float *row_weights,
                                   const float *column_weights, float *frame, long long width, long long row,
                                   long long column, float unit, float zero)
{
    for (unsigned i = BEGIN; i < (unsigned)(rows * columns); i += STRIDE) {
        long long y = i / (unsigned)columns, x = i % (unsigned)columns;
        float value = result[(first_row + y) * pitch + first_column + x] * unit + zero;
        float *pixel = frame + (row + y) * width + column + x;
        if (row_weights)
            *pixel += value * row_weights[y] * column_weights[x];
        else
            *pixel = value;
    }
}
