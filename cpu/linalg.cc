#include "cpu/linalg.h"

#include <algorithm>
#include <limits>
#include <new>

// A failed assertion would end the caller's process.
#define EIGEN_NO_DEBUG
#define EIGEN_DONT_PARALLELIZE
#define EIGEN_MPL2_ONLY
#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <Eigen/SVD>

namespace lowrank_attention {

namespace {

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using Rows = Eigen::Map<RowMajor<T>>;
template <class T>
using ConstRows = Eigen::Map<const RowMajor<T>>;

// Runs body(), which allocates.
template <class Body>
bool withMemory(const Body& body) {
  try {
    body();
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

void fillNaN(double* data, Index count) {
  if (data != nullptr) std::fill_n(data, count, std::numeric_limits<double>::quiet_NaN());
}

}  // namespace

bool regularizedInverse(const float* a, Index m, Index n, double regularization, float* z) {
  return withMemory([&] {
    const Eigen::MatrixXd matrix = ConstRows<float>(a, m, n).cast<double>();
    if (!matrix.allFinite()) {
      std::fill_n(z, n * m, std::numeric_limits<float>::quiet_NaN());
      return;
    }
    const Eigen::BDCSVD<Eigen::MatrixXd> svd(matrix, Eigen::ComputeThinU | Eigen::ComputeThinV);
    const Eigen::VectorXd& sigma = svd.singularValues();
    const double lambda = regularization * sigma(0);
    const double zero = regularization > 0 ? 0 : std::ldexp(static_cast<double>(std::max(m, n)), -24) * sigma(0);
    const Eigen::VectorXd inverse =
        sigma.unaryExpr([&](double s) { return s > zero ? s / (s * s + lambda * lambda) : 0.0; });
    Rows<float>(z, n, m) = (svd.matrixV() * inverse.asDiagonal() * svd.matrixU().transpose()).cast<float>();
  });
}

bool svd(const double* a, Index m, Index n, double* values, double* left, double* right) {
  const Index rank = minimum(m, n);
  return withMemory([&] {
    const ConstRows<double> matrix(a, m, n);
    if (!matrix.allFinite()) {
      fillNaN(values, rank);
      fillNaN(left, m * rank);
      fillNaN(right, n * rank);
      return;
    }
    const bool bases = left != nullptr || right != nullptr;
    const Eigen::BDCSVD<Eigen::MatrixXd> svd(matrix, bases ? Eigen::ComputeThinU | Eigen::ComputeThinV : 0);
    Eigen::Map<Eigen::VectorXd>(values, rank) = svd.singularValues();
    if (left != nullptr) Rows<double>(left, m, rank) = svd.matrixU();
    if (right != nullptr) Rows<double>(right, n, rank) = svd.matrixV();
  });
}

bool eigenSymmetric(const double* a, Index n, double* values, double* vectors) {
  return withMemory([&] {
    const ConstRows<double> matrix(a, n, n);
    if (!matrix.allFinite()) {
      fillNaN(values, n);
      fillNaN(vectors, n * n);
      return;
    }
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(
        matrix, vectors == nullptr ? Eigen::EigenvaluesOnly : Eigen::ComputeEigenvectors);
    Eigen::Map<Eigen::VectorXd>(values, n) = solver.eigenvalues();
    if (vectors != nullptr) Rows<double>(vectors, n, n) = solver.eigenvectors();
  });
}

bool orthonormalize(float* a, Index m, Index n, float* scratch) {
  return withMemory([&] {
    // Reflections run down columns, which therefore lie dense.
    Eigen::Map<Eigen::MatrixXf> columns(scratch, m, n);
    columns = ConstRows<float>(a, m, n);
    const Eigen::HouseholderQR<Eigen::Ref<Eigen::MatrixXf>> qr(columns);
    const Eigen::MatrixXf basis = qr.householderQ() * Eigen::MatrixXf::Identity(m, n);
    Rows<float>(a, m, n) = basis;
  });
}

std::size_t linalgWorkspaceBytes(const LinalgProblem&, Index) { return 0; }

void runLinalg(const LinalgProblem& problem, const Execution& execution) {
  const Index m = problem.m, n = problem.n, rank = minimum(m, n);
  const auto of = [](double* base, Index item, Index size) { return base == nullptr ? nullptr : base + item * size; };
  forEachUnit(execution, problem.batch, [&](Index, Index item) {
    const double* matrix = problem.a + item * m * n;
    double* values = problem.values + item * rank;
    double* left = of(problem.left, item, m * rank);
    double* right = of(problem.right, item, n * rank);
    const bool done = problem.decomposition == Decomposition::kSvd ? svd(matrix, m, n, values, left, right)
                                                                   : eigenSymmetric(matrix, n, values, left);
    if (!done) execution.fail(Code::kMemory);
  });
}

}  // namespace lowrank_attention
