// What the GPU does around the network: camera pixels to noise units, tiles out of the frame, results back into it.
// Compiled to kernels.ptx by `make ptx`; the tests compile this same file for the processor and compare it with NumPy.
// Every kernel walks its elements with a stride of the whole grid, so any grid is right and none is needed for it.

#define BEGIN (blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x)
#define STRIDE (gridDim.x * (unsigned long long)blockDim.x)

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
    long long period = 2 * (size - 1);
    index = index % period;
    if (index < 0)
        index += period;
    return index < size ? index : period - index;
}

// A tile (side, side) whose first pixel is (row, column) of the frame; `add` and `multiply` scale it once more.
extern "C" __global__ void gather(const float *units, long long height, long long width, float *tile,
                                  long long side, long long row, long long column, float add, float multiply)
{
    for (unsigned long long i = BEGIN; i < (unsigned long long)(side * side); i += STRIDE) {
        long long y = reflected(row + (long long)i / side, height), x = reflected(column + (long long)i % side, width);
        tile[i] = (units[y * width + x] + add) * multiply;
    }
}

// The part (first_row.. first_row + rows, ...) of a tile's result into the frame, in the camera's units. Where
// neighbours cross-fade there are weights, one for every row and column of that part, and the frame starts at zero.
extern "C" __global__ void scatter(const float *result, long long side, long long first_row, long long first_column,
                                   long long rows, long long columns, const float *row_weights,
                                   const float *column_weights, float *frame, long long width, long long row,
                                   long long column, float unit, float zero)
{
    for (unsigned long long i = BEGIN; i < (unsigned long long)(rows * columns); i += STRIDE) {
        long long y = (long long)i / columns, x = (long long)i % columns;
        float value = result[(first_row + y) * side + first_column + x] * unit + zero;
        float *pixel = frame + (row + y) * width + column + x;
        if (row_weights)
            *pixel += value * row_weights[y] * column_weights[x];
        else
            *pixel = value;
    }
}
