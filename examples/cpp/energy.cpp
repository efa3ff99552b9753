// Energy (eV) and forces (eV/Å) of a molecule from a compiled model, with libtorch alone:
//   energy MODEL.nequip.pt2 CUTOFF [DEVICE] < atoms.txt       each line: index of the atom's type, x, y, z in Å
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <iostream>

using at::Tensor;

int main(int argc, char** argv) {
  std::vector<int64_t> types, local, centre, neighbor;
  std::vector<double> x;
  for (double t, a, b, c; std::cin >> t >> a >> b >> c;) types.push_back(t), x.insert(x.end(), {a, b, c});
  const int64_t n = types.size();
  const double cutoff = std::stod(argv[2]);
  for (int64_t i = 0; i < n; ++i)  // edges sorted by centre, then neighbour
    for (int64_t j = 0; j < n; ++j) {
      double r2 = 0;
      for (int k = 0; k < 3; ++k) r2 += (x[3 * j + k] - x[3 * i + k]) * (x[3 * j + k] - x[3 * i + k]);
      if (i != j && r2 < cutoff * cutoff) centre.push_back(i), neighbor.push_back(j);
    }

  const auto edges = at::stack({at::tensor(centre, at::kLong), at::tensor(neighbor, at::kLong)});
  const auto pointers = [n](const Tensor& index) { return at::constant_pad_nd(at::bincount(index, {}, n).cumsum(0), {1, 0}); };
  std::vector<Tensor> graph = {
      at::tensor(x, at::kDouble).reshape({n, 3}), at::tensor(types, at::kLong), edges,
      at::zeros({edges.size(1), 3}, at::kDouble),                       // shifts: nothing is periodic
      at::zeros({n}, at::kLong), at::tensor({int64_t(0), n}, at::kLong),  // one structure
      pointers(edges[0]), edges[1].argsort(/*stable=*/true), pointers(edges[1]), at::ones({n}, at::kBool)};
  for (Tensor& tensor : graph) tensor = tensor.to(at::Device(argc > 3 ? argv[3] : "cpu"));  // what the file is for
  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  const auto out = model.run(graph);  // atomic_energy [n], forces [n, 3], virial [1, 3, 3], ...

  std::printf("%.17g\n", out[0].sum().item<double>());
  for (int64_t i = 0; i < n; ++i)
    std::printf("%.17g %.17g %.17g\n", out[1][i][0].item<double>(), out[1][i][1].item<double>(), out[1][i][2].item<double>());
}
