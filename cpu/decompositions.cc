#include "cpu/decompositions.h"

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

// Basis of columns that lie dense, as reflections run down them, which takes their place.
template <class T>
void orthonormalizeColumns(Eigen::Ref<Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>> columns, T* basis) {
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
  const Index m = columns.rows(), n = columns.cols();
  const Eigen::HouseholderQR<Eigen::Ref<Matrix>> qr(columns);
  const Matrix reflected = qr.householderQ() * Matrix::Identity(m, n);
  Rows<T>(basis, m, n) = reflected;
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

bool basis(const double* a, Index m, Index n, double* basis) {
  return withMemory([&] {
    const ConstRows<double> matrix(a, m, n);
    if (!matrix.allFinite()) {
      fillNaN(basis, m * n);
      return;
    }
    Eigen::MatrixXd columns = matrix;
    orthonormalizeColumns<double>(columns, basis);
  });
}

bool orthonormalize(float* a, Index m, Index n, float* scratch) {
  return withMemory([&] {
    Eigen::Map<Eigen::MatrixXf> columns(scratch, m, n);
    columns = ConstRows<float>(a, m, n);
    orthonormalizeColumns<float>(columns, a);
  });
}

}  // namespace lowrank_attention
