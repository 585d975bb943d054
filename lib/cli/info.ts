/** The command `info`: what is installed and what it can do here. */
import { type DeviceInfo, devices, type Info, info } from '../info';
import { table } from './report';

export interface InfoReport extends Info {
  readonly node: string;
  readonly platform: string;
  readonly devices: readonly DeviceInfo[];
}

export function infoReport(): InfoReport {
  return {
    ...info(),
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    devices: devices(),
  };
}

/** Instruction sets across, ops down: which kernels were built, and which of them run here. */
export function infoText(report: InfoReport): string {
  const { version, build, cpu, threads, kernels, node, platform } = report;
  const facts = [
    ['lowrank-attention', version],
    ['Node.js', `${node} (${platform}), Node-API ${build.napi}`],
    ['build', `${build.type}, ${build.compiler}${build.sanitizers === '' ? '' : `, ${build.sanitizers}`}`],
    ['CUDA', build.cuda],
    ['CPU', `${cpu.name}, ${cpu.cores} cores`],
    ['threads', String(threads)],
  ];
  const places = report.devices.map(({ name, available, reason, description }) => [
    name,
    available ? 'usable' : 'not used',
    (available ? description : reason) ?? '',
  ]);
  const isas = [...new Set(kernels.map(({ device, isa }) => `${device} ${isa}`))];
  const ops = [...new Set(kernels.map(({ op }) => op))];
  const rows = ops.map((op) => [
    op,
    ...isas.map((name) => {
      const row = kernels.find((kernel) => kernel.op === op && `${kernel.device} ${kernel.isa}` === name);
      return row === undefined ? '' : row.supported ? 'yes' : 'not on this processor';
    }),
  ]);
  return [
    facts.map(([name, value]) => `${`${name}`.padEnd(18)} ${value}`).join('\n'),
    table(['device', '', ''], places),
    table(['kernels', ...isas], rows),
  ].join('\n\n');
}
